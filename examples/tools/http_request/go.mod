module http-request-tool

go 1.21
