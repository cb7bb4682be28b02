// SPDX-License-Identifier: GPL-3.0-or-later
'use strict';

// A service is its role plus one JSON file. Paths, ports, names and URLs all come from that file;
// the few secrets stand in a second file, so that configuration can be shown and compared freely.
const crypto = require('crypto');
const fs = require('fs');

const ROLES = ['brain', 'core', 'shared', 'risk', 'phase', 'scavenger', 'batch'];

// The parsed file, and the SHA-256 of the very bytes that were parsed.
function readJson(path) {
  try {
    const bytes = fs.readFileSync(path);
    return [JSON.parse(bytes.toString()), crypto.createHash('sha256').update(bytes).digest('hex')];
  } catch (error) {
    throw new Error(`cannot use ${path}: ${error.code || error.name}`); // the parser's own message may quote a secret
  }
}

function load(path) {
  if (!path) throw new Error('usage: service.js CONFIG.json (or TITAN_CONFIG in the environment)');
  const [config, digest] = readJson(path);
  for (const key of ['service', 'role', 'environment', 'secretsFile', 'redis']) {
    if (!config[key]) throw new Error(`${path}: "${key}" is missing`);
  }
  if (!ROLES.includes(config.role)) throw new Error(`${path}: unknown role "${config.role}"`);
  if (config.role !== 'batch' && !Number.isInteger(config.port)) throw new Error(`${path}: "port" is missing`);
  const [secrets] = readJson(config.secretsFile);
  if (!secrets.redisPassword) throw new Error(`${config.secretsFile}: "redisPassword" is missing`);
  for (const venue of Object.keys(config.exchanges || {})) {
    const keys = (secrets.exchanges || {})[venue] || {};
    if (!keys.apiKey || !keys.apiSecret) throw new Error(`${config.secretsFile}: keys of ${venue} are missing`);
  }
  return { config, secrets, digest };
}

module.exports = { load };
