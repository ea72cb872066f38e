// Looks a repository up through GitHub's API. The token is attached by the sidecar: this code never sees it.
package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"
)

type params struct {
	Repository string `json:"repository"`
}

type repository struct {
	FullName    string  `json:"full_name"`
	Description *string `json:"description"`
	Stars       int     `json:"stargazers_count"`
	OpenIssues  int     `json:"open_issues_count"`
	Branch      string  `json:"default_branch"`
	Private     bool    `json:"private"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var given params
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		return fmt.Errorf("parameters: %w", err)
	}
	owner, name, _ := strings.Cut(given.Repository, "/")
	request := httpRequest{
		URL: "https://api.github.com/repos/" + url.PathEscape(owner) + "/" + url.PathEscape(name),
		Headers: map[string]string{
			"accept":               "application/vnd.github+json",
			"user-agent":           "clawbox-example",
			"x-github-api-version": "2022-11-28",
		},
	}
	var response httpResponse
	if err := call("http_request", request, &response); err != nil {
		return err
	}
	if response.Status != 200 {
		return fmt.Errorf("GitHub answered %d: %.200s", response.Status, response.Body)
	}
	var found repository
	if err := json.Unmarshal([]byte(response.Body), &found); err != nil {
		return fmt.Errorf("GitHub's answer: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}
