#!/usr/bin/env node
// A tiny MCP server of the legacy era on stdio.
const methods = {
  initialize: ({protocolVersion}) => (
    {protocolVersion, capabilities: {tools: {}}, serverInfo: {name: 'told-by-node', version: '1.0.0'}}),
  'tools/list': () => ({tools: [{name: 'tell', inputSchema: {type: 'object'}}]}),
  'tools/call': ({arguments: {text}}) => (
    {content: [{type: 'text', text: `node tells ${text} ${process.argv.slice(2).join(' ')}`}]}),
  ping: () => ({}),
};
require('node:readline').createInterface({input: process.stdin}).on('line', line => {
  const {id, method, params} = JSON.parse(line);
  if (id === undefined) return;
  const known = methods[method];
  const rest = known ? {result: known(params)} : {error: {code: -32601, message: `no ${method}`}};
  console.log(JSON.stringify({jsonrpc: '2.0', id, ...rest}));
});
