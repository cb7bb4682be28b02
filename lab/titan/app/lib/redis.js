// SPDX-License-Identifier: GPL-3.0-or-later
'use strict';

const Redis = require('ioredis');

// Fails fast instead of hanging: no offline queue, no resending of old commands after a reconnect, and a deadline
// for each command. The ready check (INFO) keeps a loading or unauthenticated Redis from counting as connected.
function connect({ host, port, path, db }, password, log) {
  const redis = new Redis({
    ...(path ? { path } : { host, port }),
    db,
    password,
    lazyConnect: true,
    enableOfflineQueue: false,
    enableReadyCheck: true,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    disableClientInfo: true,
    connectTimeout: 1000,
    commandTimeout: 1000,
    retryStrategy: (times) => Math.min(times * 100, 1000),
  });
  let last = '';
  redis.on('error', (error) => {
    if (error.message !== last) log('redis error', { error: error.message });
    last = error.message;
  });
  redis.on('ready', () => {
    last = '';
    log('redis ready', { db });
  });
  redis.connect().catch(() => {}); // reported by the error event; the retry goes on by itself
  return redis;
}

// Asked at the time of the call, never remembered.
async function answers(redis, timeoutMs = 500) {
  let timer;
  const late = new Promise((resolve) => { timer = setTimeout(resolve, timeoutMs, 'late'); });
  try {
    return (await Promise.race([redis.ping(), late])) === 'PONG';
  } catch {
    return false;
  } finally {
    clearTimeout(timer);
  }
}

// MULTI/EXEC, and an error of any single command is an error of all.
async function transaction(redis, commands) {
  const results = await redis.multi(commands).exec();
  if (!results) throw new Error('redis transaction aborted');
  for (const [error] of results) if (error) throw error;
  return results.map(([, value]) => value);
}

module.exports = { connect, answers, transaction };
