import sys

import httpx

answer = httpx.get(sys.argv[1])
print(answer.status_code, answer.text)
