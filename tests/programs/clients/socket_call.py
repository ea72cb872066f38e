"""``POST /proxy``, which needs nothing but an HTTP library that takes a socket."""

import json
import os
import socket
import sys
from http.client import HTTPConnection

connection = HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(os.environ["CLAWBOX_PROXY_SOCKET"])
headers = {"Proxy-Authorization": "Bearer " + os.environ["CLAWBOX_PROXY_TOKEN"]}
connection.request("POST", "/proxy", json.dumps({"url": sys.argv[1], "method": "GET"}), headers)
answer = connection.getresponse()
reply = json.load(answer)
print(reply.get("body"))
sys.exit(answer.status != 200)
