// Reads the text of /metrics, in the format of Prometheus, as far as the chart needs it.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

// Returns [{name, labels, value}].
export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(LABEL)].map((label) => [label[1], label[2]]));
    samples.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return samples;
}

// Returns {batches, inputs} since the server's start, over all models.
export function batches(samples) {
  const sum = (wanted) => samples.reduce((all, { name, value }) => (name === wanted ? all + value : all), 0);
  return { batches: sum("facet_batch_items_count"), inputs: sum("facet_batch_items_sum") };
}
