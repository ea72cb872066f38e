import asyncio
import sys

import aiohttp


async def fetch(url: str) -> None:
    # The one thing that aiohttp has to be told.
    async with aiohttp.ClientSession(trust_env=True) as session, session.get(url) as answer:
        print(answer.status, await answer.text())


asyncio.run(fetch(sys.argv[1]))
