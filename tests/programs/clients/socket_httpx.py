import os
import sys

import httpx

transport = httpx.HTTPTransport(uds=os.environ["CLAWBOX_PROXY_SOCKET"])
headers = {"Proxy-Authorization": "Bearer " + os.environ["CLAWBOX_PROXY_TOKEN"]}
with httpx.Client(transport=transport, headers=headers) as client:
    answer = client.get("http://localhost/" + sys.argv[1])
    print(answer.raise_for_status().text)
