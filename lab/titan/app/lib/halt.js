// SPDX-License-Identifier: GPL-3.0-or-later
'use strict';

const fs = require('fs');

// May this process trade? Two kinds, because real Titans differ:
// - latched: starts halted while the latch file exists, halts when it appears, cannot be resumed until it is gone,
//   and never resumes by itself;
// - unlatched (no latchFile): a flag in memory that is true again after each start, whatever was commanded before.
class TradingSwitch {
  constructor({ latchFile, pollMs = 200 }, log) {
    this.latchFile = latchFile;
    this.log = log;
    this.halted = false;
    if (latchFile) {
      this.check();
      this.timer = setInterval(() => this.check(), pollMs);
    }
  }

  // Only "no such file" means no latch: a latch that cannot be looked at counts as set.
  get latch() {
    if (!this.latchFile) return false;
    try {
      fs.statSync(this.latchFile);
      return true;
    } catch (error) {
      return error.code !== 'ENOENT';
    }
  }

  check() {
    if (!this.halted && this.latch) this.halt('latch');
  }

  get trading() {
    this.check();
    return !this.halted;
  }

  halt(reason) {
    this.halted = true;
    this.log('trading halted', { reason });
  }

  resume() {
    if (this.latch) return false;
    this.halted = false;
    this.log('trading resumed');
    return true;
  }

  close() {
    this.halted = true;
    clearInterval(this.timer);
  }
}

module.exports = { TradingSwitch };
