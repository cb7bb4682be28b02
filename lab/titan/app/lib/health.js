// SPDX-License-Identifier: GPL-3.0-or-later
'use strict';

const { answers } = require('./redis');
const { request } = require('./http');

const word = (ok, yes, no) => (ok ? yes : no);
const mapValues = (object, f) => Object.fromEntries(Object.entries(object).map(([key, value]) => [key, f(value)]));

async function askAll(object, ask) {
  return Object.fromEntries(await Promise.all(Object.entries(object).map(async ([key, value]) => [key, await ask(value)])));
}

// {url, key, expect, timeoutMs}: healthy only with 200 *and* the expected word in the body
async function dependencyAnswers({ url, key = 'status', expect = ['healthy'], timeoutMs = 1500 }) {
  try {
    const reply = await request('GET', url, { timeoutMs });
    return reply.status === 200 && expect.includes(reply.json?.[key]);
  } catch {
    return false;
  }
}

class Health {
  constructor({ config, digest, version, redis, exchanges, isHalted }) {
    Object.assign(this, { config, digest, version, redis, exchanges, isHalted });
  }

  // Redis and the services below: asked now, side by side.
  async dependencies() {
    const [redis, services] = await Promise.all([answers(this.redis), askAll(this.config.dependencies || {}, dependencyAnswers)]);
    return { redis, services, ok: redis && Object.values(services).every(Boolean) };
  }

  // An exchange that is halted by itself is told as such: it is neither asked nor missed.
  async venues() {
    const words = await askAll(this.exchanges, async (one) => (this.isHalted(one.venue) ? 'halted' : word(await one.reachable(), 'connected', 'disconnected')));
    return { ok: Object.values(words).every((one) => one !== 'disconnected'), words };
  }

  streams() {
    const words = mapValues(this.exchanges, (one) => (this.isHalted(one.venue) ? 'halted' : word(one.streaming, 'connected', 'disconnected')));
    return { ok: Object.values(words).every((one) => one !== 'disconnected'), words };
  }

  get about() {
    return { service: this.config.service, version: this.version, uptime: Math.floor(process.uptime()), config_digest: this.digest };
  }

  // The guide's body.
  async guide() {
    const { redis, services, ok } = await this.dependencies();
    const dependencies = { redis: word(redis, 'connected', 'disconnected'), ...mapValues(services, (up) => word(up, 'healthy', 'unhealthy')) };
    return [ok ? 200 : 503, { status: word(ok, 'healthy', 'degraded'), ...this.about, dependencies }];
  }

  // titan-core: the body is right, the status code is 200 whatever happens.
  async core() {
    const [{ redis }, venues] = await Promise.all([this.dependencies(), this.venues()]);
    const ok = redis && venues.ok && this.streams().ok;
    const { service: _, ...about } = this.about;
    return [200, { status: word(ok, 'ok', 'degraded'), ...about, components: { redis: word(redis, 'healthy', 'unhealthy'), broker: venues.words } }];
  }

  async risk() {
    const { redis, services, ok } = await this.dependencies();
    return [ok ? 200 : 503, { state: word(ok, 'UP', 'DOWN'), checks: { redis, ...services }, config_digest: this.digest }];
  }

  // titan-scavenger: without its optional market feed, which no lab has, it calls itself degraded on its best day.
  async scavenger() {
    const { redis, services, ok } = await this.dependencies();
    const [executionService] = Object.values(services);
    const connections = { redis: word(redis, 'connected', 'disconnected'), executionService: word(executionService, 'connected', 'disconnected') };
    return [ok ? 200 : 503, { status: 'degraded', ...this.about, connections: { ...connections, marketFeed: 'disabled' } }];
  }
}

module.exports = { Health };
