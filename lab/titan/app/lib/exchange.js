// SPDX-License-Identifier: GPL-3.0-or-later
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const WebSocket = require('ws');
const { request } = require('./http');

const RECV_WINDOW = 5000;

function parse(data) {
  try {
    return JSON.parse(data.toString());
  } catch {
    return undefined;
  }
}

class Exchange {
  constructor(venue, settings, keys, log) {
    Object.assign(this, { venue, log, symbol: settings.symbol, rest: settings.rest, ws: settings.ws });
    this.keys = keys;
    // verified whatever the environment says (NODE_TLS_REJECT_UNAUTHORIZED); without a `ca` of its own, against the usual ones
    this.tls = { rejectUnauthorized: true, ca: settings.ca ? fs.readFileSync(settings.ca) : undefined };
    this.timeoutMs = settings.timeoutMs || 1000;
    this.silenceMs = settings.silenceMs || 4000;
    this.price = undefined;
    this.heardAt = 0;
    this.failures = 0;
  }

  sign(text) {
    return crypto.createHmac('sha256', this.keys.apiSecret).update(text).digest('hex');
  }

  // --- stream: connected means open *and* heard from lately ------------------------------------------------------
  open() {
    this.socket = new WebSocket(this.ws, { ...this.tls, handshakeTimeout: 2000 });
    const { socket } = this;
    let watchdog;
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => socket.terminate(), this.silenceMs);
    };
    socket.on('open', () => {
      alive();
      socket.send(JSON.stringify(this.subscription()));
    });
    socket.on('message', (data) => {
      alive();
      const price = Number(this.tickerPrice(parse(data)));
      if (!(price > 0)) return; // acknowledgements, pongs, nonsense: not market data
      if (!this.heardAt) this.log('stream connected', { venue: this.venue });
      this.price = price;
      this.heardAt = Date.now();
      this.failures = 0;
    });
    socket.on('error', () => {}); // followed by close
    socket.on('close', () => {
      clearTimeout(watchdog);
      if (this.heardAt) this.log('stream lost', { venue: this.venue });
      this.heardAt = 0;
      if (!this.closed) this.retry = setTimeout(() => this.open(), Math.min(250 * 2 ** this.failures++, 2000));
    });
  }

  get streaming() {
    return this.socket?.readyState === WebSocket.OPEN && Date.now() - this.heardAt < this.silenceMs;
  }

  close() {
    this.closed = true;
    clearTimeout(this.retry);
    this.socket?.terminate();
  }

  // --- REST: a reply that is not the venue's own JSON is no reply -------------------------------------------------
  async reachable() {
    try {
      await this.balance(); // signed, so a wrong key shows here and not at the first order
      return true;
    } catch {
      return false;
    }
  }
}

// The signed size in a position report; a report that does not speak of the symbol is no report.
function held(list, symbol, size) {
  const row = Array.isArray(list) ? list.find((one) => one.symbol === symbol) : undefined;
  const number = row === undefined || size(row) === undefined || size(row) === '' ? NaN : Number(size(row));
  if (!Number.isFinite(number)) throw new Error(`no usable position of ${symbol} in the reply`);
  return number;
}

// A refusal is an answer: the order does not exist. Everything else that goes wrong leaves it unknown.
class Refused extends Error {}

class Binance extends Exchange {
  async call(method, path, parameters = {}) {
    const query = new URLSearchParams({ ...parameters, recvWindow: RECV_WINDOW, timestamp: Date.now() }).toString();
    const url = `${this.rest}${path}?${query}&signature=${this.sign(query)}`;
    const reply = await request(method, url, { headers: { 'X-MBX-APIKEY': this.keys.apiKey }, timeoutMs: this.timeoutMs, tls: this.tls });
    if (reply.json && reply.status >= 400 && reply.status < 500) throw new Refused(`binance ${reply.status} ${reply.json.msg}`);
    if (reply.status !== 200 || !reply.json) throw new Error(`binance: unusable reply, status ${reply.status}`);
    return reply.json;
  }

  async balance() {
    const list = await this.call('GET', '/fapi/v2/balance');
    if (!Array.isArray(list) || !list.length) throw new Error('binance: no balance in the reply');
  }

  async position(symbol) {
    const list = await this.call('GET', '/fapi/v2/positionRisk', { symbol });
    return held(list, symbol, (row) => row.positionAmt);
  }

  async order({ clientOrderId, symbol, side, qty, price, reduceOnly }) {
    const reply = await this.call('POST', '/fapi/v1/order', {
      symbol, side: side.toUpperCase(), type: 'MARKET', quantity: qty, newClientOrderId: clientOrderId, newOrderRespType: 'RESULT',
      ...(reduceOnly && { reduceOnly }),
    });
    if (!reply.orderId) throw new Error('binance: no order id in the reply');
    return { price: Number(reply.avgPrice) || price };
  }

  subscription() {
    return { method: 'SUBSCRIBE', params: [`${this.symbol.toLowerCase()}@ticker`], id: 1 };
  }

  tickerPrice(message) {
    return message?.s === this.symbol ? message.c : undefined;
  }
}

class Bybit extends Exchange {
  async call(method, path, parameters) {
    const query = method === 'GET' ? new URLSearchParams(parameters).toString() : '';
    const body = method === 'GET' ? undefined : JSON.stringify(parameters);
    const at = Date.now();
    const reply = await request(method, `${this.rest}${path}${query && `?${query}`}`, {
      body,
      timeoutMs: this.timeoutMs,
      tls: this.tls,
      headers: {
        'X-BAPI-API-KEY': this.keys.apiKey,
        'X-BAPI-TIMESTAMP': String(at),
        'X-BAPI-RECV-WINDOW': String(RECV_WINDOW),
        'X-BAPI-SIGN': this.sign(`${at}${this.keys.apiKey}${RECV_WINDOW}${body ?? query}`),
      },
    });
    const code = reply.json?.retCode;
    if (Number.isInteger(code) && code !== 0) throw new Refused(`bybit ${code} ${reply.json.retMsg}`);
    if (reply.status !== 200 || code !== 0) throw new Error(`bybit: unusable reply, status ${reply.status}`);
    return reply.json.result;
  }

  async balance() {
    const result = await this.call('GET', '/v5/account/wallet-balance', { accountType: 'UNIFIED' });
    if (!result?.list?.length) throw new Error('bybit: no balance in the reply');
  }

  async position(symbol) {
    const result = await this.call('GET', '/v5/position/list', { category: 'linear', symbol });
    return held(result?.list, symbol, (row) => (row.side === 'Sell' ? `-${row.size}` : row.size));
  }

  async order({ clientOrderId, symbol, side, qty, price, reduceOnly }) {
    const result = await this.call('POST', '/v5/order/create', {
      category: 'linear', symbol, side: side === 'buy' ? 'Buy' : 'Sell', orderType: 'Market', qty: String(qty), orderLinkId: clientOrderId,
      ...(reduceOnly && { reduceOnly }),
    });
    if (!result?.orderId) throw new Error('bybit: no order id in the reply');
    return { price }; // Bybit acknowledges without a fill price
  }

  subscription() {
    return { op: 'subscribe', args: [`tickers.${this.symbol}`] };
  }

  tickerPrice(message) {
    return message?.data?.symbol === this.symbol ? message.data.lastPrice : undefined;
  }
}

const KINDS = { binance: Binance, bybit: Bybit };

function openExchanges(settings, secrets, log) {
  const exchanges = {};
  for (const [venue, one] of Object.entries(settings)) {
    exchanges[venue] = new KINDS[venue](venue, one, secrets.exchanges[venue], log);
    exchanges[venue].open();
  }
  return exchanges;
}

module.exports = { openExchanges, Refused };
