// Vectors of unit length: reading them, ranking by them, grouping them. Knows nothing of photos.

// Embeddings come as JSON in a string, or as arrays, as the server is set.
export function vector(embedding) {
  return Float32Array.from(typeof embedding === "string" ? JSON.parse(embedding) : embedding);
}

export function cosine(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

// Returns [{item, score}] for all items that have a vector of the query's length, best first.
export function rank(query, items) {
  return items
    .filter((item) => item.vector?.length === query.length)
    .map((item) => ({ item, score: cosine(query, item.vector) }))
    .sort((a, b) => b.score - a.score);
}

// Things that belong together: two whose cosine distance is at most `distance`, and all that are linked in this way.
export class Groups {
  constructor(distance) {
    this.distance = distance;
    this.items = [];
    this.parents = []; // a forest: each points to one of its group, the root to itself
  }

  add(item) {
    const own = this.items.push(item) - 1;
    this.parents.push(own);
    for (let other = 0; other < own; other++) {
      if (1 - cosine(item.vector, this.items[other].vector) <= this.distance) this.#join(own, other);
    }
  }

  // Returns lists of items, the largest group first, each in the order in which its items came.
  lists() {
    const lists = new Map();
    this.items.forEach((item, index) => {
      const root = this.#root(index);
      if (!lists.has(root)) lists.set(root, []);
      lists.get(root).push(item);
    });
    return [...lists.values()].sort((a, b) => b.length - a.length);
  }

  #root(index) {
    while (this.parents[index] !== index) {
      this.parents[index] = this.parents[this.parents[index]];
      index = this.parents[index];
    }
    return index;
  }

  #join(a, b) {
    const [low, high] = [this.#root(a), this.#root(b)].sort((x, y) => x - y);
    this.parents[high] = low;
  }
}
