// SPDX-License-Identifier: GPL-3.0-or-later
'use strict';

const fs = require('fs');

// What this process may do, from nothing to everything.
const MODES = ['halted', 'observe', 'reduce_only', 'full'];
const STATUS = { halted: 'halted', observe: 'observing', reduce_only: 'reduce_only', full: 'operational' };
const lower = (one, other) => MODES[Math.min(MODES.indexOf(one), MODES.indexOf(other))];

// Two kinds, because real Titans differ:
// - latched: starts halted while the latch file exists, falls to what the latch allows when it appears or changes, and
//   never rises by itself: each step up is a resume, and no resume goes beyond the latch. A latch allows nothing unless
//   its JSON says "mode": observe or reduce_only. Files in <latch>.d halt single venues for as long as they are there;
// - unlatched (no latchFile): a flag in memory that is true again after each start, whatever was commanded before.
class TradingSwitch {
  constructor({ latchFile, lyingHalt = false, pollMs = 200 }, log) {
    // lyingHalt is a fault for drills: it tells of every halt and heeds none
    Object.assign(this, { latchFile, lying: lyingHalt, log });
    this.current = this.latch ? 'halted' : 'full';
    if (latchFile) this.timer = setInterval(() => this.check(), pollMs);
  }

  // Only "no such file" means no latch: a latch that cannot be looked at counts as set.
  static isSet(file) {
    try {
      fs.statSync(file);
      return true;
    } catch (error) {
      return error.code !== 'ENOENT';
    }
  }

  get latch() {
    return Boolean(this.latchFile) && TradingSwitch.isSet(this.latchFile);
  }

  get allowed() {
    if (!this.latchFile) return 'full';
    try {
      const { mode } = JSON.parse(fs.readFileSync(this.latchFile, 'utf8'));
      return mode === 'observe' || mode === 'reduce_only' ? mode : 'halted';
    } catch (error) {
      return error.code === 'ENOENT' ? 'full' : 'halted';
    }
  }

  set(mode, reason) {
    if (mode !== this.current) this.log('trading mode', { mode, reason });
    this.current = mode;
  }

  check() {
    this.set(lower(this.current, this.allowed), 'latch');
  }

  // What may really be done now. An order asks twice: when it is decided on, and right before it is sent.
  get mode() {
    if (this.closed) return 'halted';
    this.check();
    return this.lying ? 'full' : this.current;
  }

  isHalted(venue) {
    return Boolean(this.latchFile) && !this.lying && TradingSwitch.isSet(`${this.latchFile}.d/${venue}`);
  }

  // What is told to those who ask.
  get status() {
    this.check();
    return STATUS[this.current];
  }

  halt(reason) {
    this.set('halted', reason);
  }

  // False: the latch allows nothing.
  resume(mode = 'full') {
    const allowed = lower(mode, this.allowed);
    if (allowed === 'halted') return false;
    this.set(allowed, 'resume');
    return true;
  }

  close() {
    this.closed = true;
    clearInterval(this.timer);
  }
}

module.exports = { TradingSwitch, MODES };
