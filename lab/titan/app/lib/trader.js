// SPDX-License-Identifier: GPL-3.0-or-later
'use strict';

const crypto = require('crypto');
const { transaction } = require('./redis');
const { Refused } = require('./exchange');

const MAX_WAITING = 20;

const round = (value) => Number(value.toFixed(8));
const fail = (status, message) => Object.assign(new Error(message), { status });

function problemOf({ signalId, venue, symbol, side, qty, priority }, exchanges, maxQty) {
  if (typeof signalId !== 'string' || !/^[\w.-]{1,36}$/.test(signalId)) return 'signalId';
  if (!Object.hasOwn(exchanges, venue)) return 'venue';
  if (symbol !== exchanges[venue].symbol) return 'symbol';
  if (side !== 'buy' && side !== 'sell') return 'side';
  if (!(qty > 0 && qty <= maxQty)) return 'qty';
  if (![1, 2, 3].includes(priority)) return 'priority';
  return undefined;
}

// The position after a fill; the entry price is averaged when it grows, kept when it shrinks, new when it flips.
function applyFill(held, side, qty, price) {
  const before = (held.side === 'short' ? -1 : 1) * Number(held.size || 0);
  const after = round(before + (side === 'buy' ? qty : -qty));
  let entry = Number(held.entryPrice || 0);
  if (after === 0) entry = 0;
  else if (before * after <= 0) entry = price;
  else if (Math.abs(after) > Math.abs(before)) entry = (entry * Math.abs(before) + price * qty) / Math.abs(after);
  return { side: after === 0 ? 'flat' : after > 0 ? 'long' : 'short', size: Math.abs(after), entryPrice: round(entry) };
}

// Takes signals one at a time: idempotency, queue, order, record. The one place that can send an order.
class Trader {
  constructor({ redis, exchanges, trading, signals, maxQty }, log) {
    Object.assign(this, { redis, exchanges, trading, maxQty, log, keys: signals });
    this.tail = Promise.resolve();
    this.waiting = 0;
  }

  async signal(signal) {
    const problem = problemOf(signal, this.exchanges, this.maxQty);
    if (problem) throw fail(400, `bad signal: ${problem}`);
    if (this.waiting >= MAX_WAITING) throw fail(429, 'too many signals waiting');
    this.waiting += 1;
    const run = this.tail.then(() => this.handle(signal));
    this.tail = run.then(() => {}, () => {});
    try {
      return await run;
    } finally {
      this.waiting -= 1;
    }
  }

  // Resolves when no order is under way any more, or when the time is up.
  async idle(timeoutMs) {
    let timer;
    const late = new Promise((resolve) => { timer = setTimeout(resolve, timeoutMs, false); });
    const idle = await Promise.race([this.tail.then(() => true), late]);
    clearTimeout(timer);
    return idle;
  }

  // Throws what stands against any order at this venue now.
  permit({ venue }) {
    const { mode } = this.trading;
    if (mode === 'halted') throw fail(409, 'halted');
    if (this.trading.isHalted(venue)) throw fail(409, `${venue} is halted`);
    return mode;
  }

  async handle(signal) {
    if (this.permit(signal) === 'observe') return this.observed(signal);
    const { idempotency, ttl, queue, max } = this.keys;
    const now = Date.now();
    try {
      const first = await this.redis.set(`${idempotency}${signal.signalId}`, this.keys.value === 'ms' ? now : '1', 'EX', ttl, 'NX');
      if (!first) throw fail(409, 'duplicate signal');
      if ((await this.redis.zcard(queue)) >= max) throw fail(429, 'signal queue is full');
      const member = JSON.stringify({ signal, priority: signal.priority, enqueuedAt: now });
      await this.redis.zadd(queue, signal.priority * 1e15 + (9999999999999 - now), member);
      const [top] = await this.redis.zpopmax(queue); // the most urgent one, not always the one just queued
      const next = top ? JSON.parse(top).signal : undefined;
      if (!next || problemOf(next, this.exchanges, this.maxQty)) throw fail(409, 'unusable signal taken from the queue');
      return await this.order(next);
    } catch (error) {
      throw error.status ? error : fail(503, `cannot record: ${error.message}`);
    }
  }

  // Judged and put aside: nothing is sent, and nothing is written that would stand in the way of the signal later.
  observed({ signalId, venue, symbol, side, qty }) {
    this.log('signal observed', { signalId, venue, symbol, side, qty });
    return { accepted: false, status: 'observed' };
  }

  // As much of the order as makes the venue's own position smaller: never beyond flat.
  async reducing({ venue, symbol, side, qty }) {
    let held;
    try {
      held = await this.exchanges[venue].position(symbol);
    } catch (error) {
      throw fail(503, `reduce only, and ${venue} does not tell its position: ${error.message}`);
    }
    if (side === 'buy' ? held >= 0 : held <= 0) throw fail(409, 'reduce only');
    return Math.min(qty, Math.abs(held));
  }

  async order({ signalId, venue, symbol, side, qty: wanted }) {
    const exchange = this.exchanges[venue];
    const mode = this.permit({ venue });
    if (mode === 'observe') throw fail(409, 'observing'); // lowered while it waited
    if (!exchange.streaming) throw fail(503, `no market data from ${venue}`);
    const reduceOnly = mode === 'reduce_only';
    const qty = reduceOnly ? await this.reducing({ venue, symbol, side, qty: wanted }) : wanted;
    const clientOrderId = `t-${Date.now().toString(36)}-${crypto.randomBytes(4).toString('hex')}`;
    const key = `titan:orders:${clientOrderId}`;
    const order = { clientOrderId, venue, symbol, side, qty, price: exchange.price, reduceOnly };
    await this.redis.hset(key, { venue, symbol, side, qty, price: order.price, status: 'pending', signalId, createdAt: Date.now() });

    let status = 'filled';
    let { price } = order;
    if (this.trading.mode !== mode || this.trading.isHalted(venue)) {
      status = 'cancelled'; // halted or lowered while the order was being written: it is never sent
    } else {
      try {
        ({ price } = await exchange.order(order));
      } catch (error) {
        status = error instanceof Refused ? 'rejected' : 'unknown'; // no usable reply: the venue may have it or not
        this.log('order failed', { clientOrderId, venue, status, error: error.message });
      }
    }
    const commands = [
      ['hset', key, 'status', status, 'price', price],
      ['hset', this.keys.processed, signalId, Date.now()],
    ];
    if (status === 'filled') {
      const positionKey = `titan:positions:${venue}:${symbol}`;
      commands.push(['hset', positionKey, applyFill(await this.redis.hgetall(positionKey), side, Number(qty), price)]);
      this.log('order filled', { clientOrderId, venue, side, qty, price });
    }
    await transaction(this.redis, commands);
    return { accepted: status === 'filled', clientOrderId, status };
  }
}

module.exports = { Trader, applyFill };
