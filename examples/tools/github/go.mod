module github-tool

go 1.21
