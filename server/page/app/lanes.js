// Work in order, a bounded number at a time.

export class Lanes {
  constructor(count) {
    this.free = count;
    this.waiting = [];
  }

  // Runs `work` when a lane is free; returns what it returns.
  async run(work) {
    if (this.free) this.free--;
    else await new Promise((resolve) => this.waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.waiting.shift();
      if (next) next();
      else this.free++;
    }
  }
}
