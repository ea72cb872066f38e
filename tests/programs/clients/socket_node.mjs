// The whole URL in the place of the path: absolute form.
import http from 'node:http'
import { text } from 'node:stream/consumers'

const { CLAWBOX_PROXY_SOCKET: socketPath, CLAWBOX_PROXY_TOKEN: token } = process.env
const url = process.argv[2]
const headers = { host: new URL(url).host, 'proxy-authorization': `Bearer ${token}` }
const request = http.get({ socketPath, path: url, headers }, async (answer) => {
  console.log(await text(answer))
  if (answer.statusCode !== 200) process.exitCode = 1
})
request.on('error', (error) => { throw error })
