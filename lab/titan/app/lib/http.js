// SPDX-License-Identifier: GPL-3.0-or-later
'use strict';

const http = require('http');
const https = require('https');

// One request on its own connection with a deadline for the whole exchange. Rejects on no reply; any reply is
// returned with its status, and `json` is undefined unless the body really is a JSON object. `tls`: options of an https connection.
function request(method, url, { body, headers = {}, timeoutMs = 1000, tls } = {}) {
  return new Promise((resolve, reject) => {
    const sent = { ...headers };
    if (body !== undefined) {
      sent['content-length'] = Buffer.byteLength(body);
      sent['content-type'] = sent['content-type'] || 'application/json';
    }
    const client = url.startsWith('https:') ? https : http;
    const req = client.request(url, { ...tls, method, headers: sent, agent: false, signal: AbortSignal.timeout(timeoutMs) }, (res) => {
      let text = '';
      res.setEncoding('utf8');
      res.on('data', (chunk) => {
        text += chunk;
        if (text.length > 1e6) req.destroy(new Error('reply too long'));
      });
      res.on('error', reject);
      res.on('aborted', () => reject(new Error('reply cut short')));
      res.on('end', () => resolve({ status: res.statusCode, json: parseObject(text) }));
    });
    req.on('error', reject);
    req.end(body);
  });
}

function parseObject(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === 'object' ? value : undefined;
  } catch {
    return undefined;
  }
}

// routes: {'GET /health': async (body) => [status, object]}
function serve(routes, { host, port }, log) {
  const server = http.createServer(async (req, res) => {
    const path = req.url.split('?')[0];
    const route = routes[`${req.method} ${path}`];
    let reply = [404, { error: 'not found' }];
    if (route) {
      try {
        reply = await route(await readBody(req));
      } catch (error) {
        reply = [error.status || 500, { error: error.message }];
        log('request failed', { path, error: error.message });
      }
    }
    const text = JSON.stringify(reply[1]);
    res.writeHead(reply[0], { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text), connection: 'close' });
    res.end(text);
  });
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, () => resolve(server));
  });
}

async function readBody(req) {
  let text = '';
  for await (const chunk of req) {
    text += chunk;
    if (text.length > 65536) throw Object.assign(new Error('body too long'), { status: 413 });
  }
  if (!text) return {};
  const body = parseObject(text);
  if (!body) throw Object.assign(new Error('body is not a JSON object'), { status: 400 });
  return body;
}

module.exports = { request, serve };
