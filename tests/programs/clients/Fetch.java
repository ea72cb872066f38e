import java.net.Authenticator;
import java.net.PasswordAuthentication;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

/** With --authenticate: where the listener asks for the token, which Java sends only if the program says so. */
class Fetch {
    public static void main(String[] args) throws Exception {
        var client = HttpClient.newBuilder();
        if (args[0].equals("--authenticate")) {
            client.authenticator(new Authenticator() {
                @Override
                protected PasswordAuthentication getPasswordAuthentication() {
                    return new PasswordAuthentication("x", System.getenv("CLAWBOX_PROXY_TOKEN").toCharArray());
                }
            });
        }
        var request = HttpRequest.newBuilder(URI.create(args[args.length - 1])).build();
        var answer = client.build().send(request, BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.body());
    }
}
