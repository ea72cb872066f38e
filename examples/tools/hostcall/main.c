/* Hands its parameters to the host as they are, and answers with the host's reply: {"ok": …} or {"error": "…"}.
 *
 * {"method": "log", "params": {"level": "info", "message": "hello"}}
 *
 * With {"times": N, …} the same call is made N times, and the last reply is the answer. The first buffer is
 * small on purpose: what does not fit is fetched with host_call_read, as any tool must do it.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(name) __attribute__((import_module("clawbox"), import_name(name)))

/* Writes {"ok": …} or {"error": "…"} to reply and returns its length; -1 when the call itself is malformed. */
IMPORT("host_call")
extern int32_t host_call(const char *request, int32_t length, char *reply, int32_t capacity);

/* Copies the reply of the last host_call from `offset` on; returns how many bytes there were, 0 at the end. */
IMPORT("host_call_read")
extern int32_t host_call_read(int32_t offset, char *reply, int32_t capacity);

static char request[1 << 20];
static char reply[128 + 1];
static char part[4096];

/* A reply that did not fit is an error that carries the size needed. */
static bool is_pending(void) {
    return strncmp(reply, "{\"error\":", 9) == 0 && strstr(reply, "\"size\":") != NULL;
}

int main(void) {
    size_t length = fread(request, 1, sizeof request - 1, stdin);
    const char *times = strstr(request, "\"times\":");
    long left = times == NULL ? 1 : strtol(times + 8, NULL, 10);
    int32_t got = 0;
    while (left-- > 0) {
        got = host_call(request, (int32_t)length, reply, sizeof reply - 1);
        if (got < 0) {
            fputs("the host says that the call is malformed\n", stderr);
            return 2;
        }
    }
    reply[got] = '\0';
    if (!is_pending()) {
        fputs(reply, stdout);
        return 0;
    }
    for (int32_t offset = 0; (got = host_call_read(offset, part, sizeof part)) > 0; offset += got) {
        fwrite(part, 1, (size_t)got, stdout);
    }
    return got < 0 ? 3 : 0;
}
