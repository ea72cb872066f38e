// Sends one HTTP request through the sandbox's sidecar and returns the response.
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var request httpRequest
	if err := json.NewDecoder(os.Stdin).Decode(&request); err != nil {
		return fmt.Errorf("parameters: %w", err)
	}
	var response httpResponse
	if err := call("http_request", request, &response); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(response)
}
