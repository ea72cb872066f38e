import sys
from urllib.request import urlopen

with urlopen(sys.argv[1], timeout=30) as answer:
    print(answer.status, answer.read().decode())
