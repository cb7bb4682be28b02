// SPDX-License-Identifier: GPL-3.0-or-later
'use strict';

// One Titan service. Which one, and everything about it, stands in its configuration file:
//   node service.js /opt/titan/config/brain.config.json
const crypto = require('crypto');
const { load } = require('./lib/config');
const { connect, answers } = require('./lib/redis');
const { openExchanges } = require('./lib/exchange');
const { TradingSwitch, MODES } = require('./lib/halt');
const { Trader } = require('./lib/trader');
const { Health } = require('./lib/health');
const { request, serve } = require('./lib/http');
const { version } = require('./package.json');

let service = '?';
const log = (message, details) => console.log(JSON.stringify({ at: new Date().toISOString(), service, message, ...details }));
const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

// brain and core: the roles that hold the exchange connections and place the orders
function tradingRoutes({ config, health, trading, trader }) {
  const halt = async (reason) => {
    trading.halt(reason);
    return trader.idle(800); // an order sent before the halt has its answer before the halt is confirmed
  };
  const routes = { 'POST /signal': async (signal) => [200, await trader.signal(signal)] };

  if (config.role === 'core') {
    const arm = () => {
      const on = trading.status === 'operational';
      return { master_arm: on, status: on ? 'ARMED' : 'DISARMED' };
    };
    return {
      ...routes,
      'GET /health': () => health.core(),
      'GET /health/live': async () => [200, { status: 'alive' }],
      'GET /replay-guard/status': async () => [200, { redisConnected: (await health.dependencies()).redis, signalTtlMs: config.signals.ttl * 1000 }],
      'GET /ws/status/info': async () => [200, { initialized: health.streams().ok, feeds: health.streams().words }],
      'GET /api/console/master-arm': async () => [200, arm()],
      'POST /api/console/master-arm': async ({ enabled, operator_id: operator }) => {
        if (typeof enabled !== 'boolean' || !operator) return [400, { error: 'enabled (boolean) and operator_id are needed' }];
        if (enabled) trading.resume();
        else await halt(`master arm off by ${operator}`);
        return [200, arm()];
      },
    };
  }

  const state = () => {
    const { status } = trading;
    return {
      status,
      trading: status === 'operational',
      mode: trading.current,
      latch: trading.latch,
      halted_venues: Object.keys(config.exchanges).filter((venue) => trading.isHalted(venue)),
    };
  };
  return {
    ...routes,
    'GET /health': () => health.guide(),
    'GET /health/trading': async () => [200, state()],
    'GET /health/websockets': async () => {
      const { ok, words } = health.streams();
      return [ok ? 200 : 503, { status: ok ? 'connected' : 'disconnected', detail: words }];
    },
    'GET /health/exchanges': async () => {
      const { ok, words } = await health.venues();
      return [ok ? 200 : 503, words];
    },
    'POST /emergency/halt': async ({ reason }) => {
      const idle = await halt(String(reason || 'operator'));
      return [200, { ...state(), ordersUnderWay: !idle }];
    },
    'POST /emergency/resume': async ({ mode = 'full' }) => {
      if (!MODES.includes(mode) || mode === 'halted') return [400, { error: `mode: expected one of ${MODES.slice(1).join(', ')}` }];
      return trading.resume(mode) ? [200, state()] : [409, { ...state(), error: 'the halt latch is set' }];
    },
  };
}

// shared and risk: look at a signal and hand it on to the role that trades
function gatewayRoutes({ config, health }) {
  return {
    'GET /health': () => (config.role === 'risk' ? health.risk() : health.guide()),
    'POST /signal': async (signal) => {
      if (!(signal.qty > 0 && signal.qty <= config.maxQty)) return [422, { error: 'over the size limit' }];
      const reply = await request('POST', config.signalUrl, { body: JSON.stringify(signal), timeoutMs: 3000 });
      return [reply.status, reply.json || { error: 'no usable reply' }];
    },
  };
}

// phase and scavenger: make signals, for ever. Buys and sells alternate on each venue, so positions stay small.
async function makeSignals({ config, redis, isClosing }) {
  const { everyMs, priority, qty, markets, offset = 0 } = config.generate;
  for (let n = offset; !isClosing(); n += 1) {
    await sleep(everyMs * (0.9 + Math.random() * 0.2));
    const [venue, symbol] = markets[n % markets.length];
    const side = Math.floor(n / markets.length) % 2 ? 'sell' : 'buy';
    const signalId = `${config.service.replace(/^titan-/, '')}-${Date.now().toString(36)}-${crypto.randomBytes(3).toString('hex')}`;
    try {
      const body = JSON.stringify({ signalId, source: config.service, priority, venue, symbol, side, qty });
      const reply = await request('POST', config.signalUrl, { body, timeoutMs: 3500 });
      await redis.hset(`${config.service.replace('-', ':')}:last`, { signalId, at: Date.now(), outcome: reply.status });
      if (reply.status !== 200 && reply.status !== 409) log('signal refused', { signalId, status: reply.status, error: reply.json?.error });
    } catch (error) {
      log('signal failed', { signalId, error: error.message });
    }
  }
}

// batch: one nightly piece of work, then the process ends; "stopped" is its healthy state
async function runBatch({ config, redis }) {
  const deadline = Date.now() + 10000;
  while (!(await answers(redis))) {
    if (Date.now() > deadline) throw new Error('redis does not answer');
    await sleep(200);
  }
  let orders = 0;
  let cursor = '0';
  do {
    const [next, keys] = await redis.scan(cursor, 'MATCH', 'titan:orders:*', 'COUNT', 500);
    orders += keys.length;
    cursor = next;
  } while (cursor !== '0');
  await redis.hset(`${config.service.replace('-', ':')}:last`, { at: Date.now(), orders });
  log('batch done', { orders });
  await redis.quit();
}

// PM2 counts a wait_ready service as started only now: when it can really work.
async function tellReady(health, isClosing) {
  while (!isClosing()) {
    if ((await health.dependencies()).ok) {
      log('ready');
      process.send?.('ready');
      return;
    }
    await sleep(50);
  }
}

async function main() {
  const { config, secrets, digest } = load(process.argv[2] || process.env.TITAN_CONFIG);
  service = config.service;
  let closing = false;
  const isClosing = () => closing;
  const redis = connect(config.redis, secrets.redisPassword, log);
  if (config.role === 'batch') return runBatch({ config, redis });

  const trades = ['brain', 'core'].includes(config.role);
  const exchanges = trades ? openExchanges(config.exchanges, secrets, log) : {};
  let trading;
  const health = new Health({ config, digest, version, redis, exchanges, isHalted: (venue) => trading.isHalted(venue) });
  let trader;
  let routes;
  if (trades) {
    trading = new TradingSwitch(config, log);
    trader = new Trader({ redis, exchanges, trading, signals: config.signals, maxQty: config.maxQty }, log);
    routes = tradingRoutes({ config, health, trading, trader });
  } else if (config.generate) {
    routes = { 'GET /health': () => (config.role === 'scavenger' ? health.scavenger() : health.guide()) };
  } else {
    routes = gatewayRoutes({ config, health });
  }

  // The port opens whatever state Redis is in: a service that cannot work says so instead of hanging.
  const server = await serve(routes, { host: config.host || '127.0.0.1', port: config.port }, log);
  log('listening', { port: config.port, version, environment: config.environment });

  const stop = () => {
    if (closing) return;
    closing = true;
    log('stopping');
    trading?.close();
    server.close();
    for (const exchange of Object.values(exchanges)) exchange.close();
    // The order under way, if any, gets its answer recorded.
    Promise.resolve(trader?.idle(1500)).then(() => redis.quit()).catch(() => {}).finally(() => process.exit(0));
  };
  process.on('SIGINT', stop);
  process.on('SIGTERM', stop);

  if (config.readySignal) tellReady(health, isClosing);
  if (config.generate) await makeSignals({ config, redis, isClosing });
  return undefined;
}

main().catch((error) => {
  log('cannot run', { error: error.message });
  process.exit(1);
});
