// A client made with the TypeScript SDK: lists tools, makes the calls of a plan, prints what came back as JSON.
//
// Usage: client.mjs LINE http URL TOKEN | client.mjs LINE stdio PROGRAM [ARG ...]
// LINE `sdk` is the package of the 1.x line, `sdk-old` an old release of it, `client` that of the 2.x line.
// The plan is read from stdin: [{"tool": NAME, "arguments": {...}}, ...]
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { text } from 'node:stream/consumers';

// The packages are installed beside the target folder, not beside this file.
const require = createRequire(`${process.env.MCP_HUB_CLIENTS}/node/package.json`);
const load = async (name) => import(pathToFileURL(require.resolve(name)).href);

const [line, kind, ...rest] = process.argv.slice(2);
const plan = JSON.parse(await text(process.stdin));

let Client, StreamableHTTPClientTransport, StdioClientTransport;
if (line !== 'client') {
  const name = line === 'sdk' ? '@modelcontextprotocol/sdk' : 'sdk-old';
  ({ Client } = await load(`${name}/client/index.js`));
  ({ StreamableHTTPClientTransport } = await load(`${name}/client/streamableHttp.js`));
  ({ StdioClientTransport } = await load(`${name}/client/stdio.js`));
} else {
  ({ Client, StreamableHTTPClientTransport } = await load('@modelcontextprotocol/client'));
  ({ StdioClientTransport } = await load('@modelcontextprotocol/client/stdio'));
}

const transport =
  kind === 'http'
    ? new StreamableHTTPClientTransport(new URL(rest[0]), { requestInit: { headers: { Authorization: `Bearer ${rest[1]}` } } })
    : new StdioClientTransport({ command: rest[0], args: rest.slice(1), env: process.env, stderr: 'inherit' });
const client = new Client({ name: 'mcp-hub-e2e', version: '1' });
await client.connect(transport);
const tools = [];
let cursor;
do {
  const page = await client.listTools(cursor ? { cursor } : {});
  tools.push(...page.tools.map((tool) => tool.name));
  cursor = page.nextCursor;
} while (cursor);
const answers = [];
for (const call of plan) {
  const result = await client.callTool({ name: call.tool, arguments: call.arguments });
  const parts = result.content.filter((part) => part.type === 'text').map((part) => part.text);
  answers.push({ tool: call.tool, isError: result.isError === true, text: parts.join('\n') });
}
await client.close();
console.log(JSON.stringify({ tools, answers }));
