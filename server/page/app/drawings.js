// Pictures to try the page with where no photos are at hand: shapes that the demo model has words for, drawn as it was
// trained on them, and portraits of a few people who do not exist. The same seed draws the same pictures.

import { jpeg } from "./pictures.js";

const SIDE = 480;
const COLOURS = {
  red: [220, 30, 35],
  orange: [250, 135, 15],
  yellow: [250, 230, 40],
  green: [35, 150, 50],
  cyan: [40, 215, 220],
  blue: [30, 60, 210],
  purple: [120, 35, 160],
  pink: [250, 150, 190],
  brown: [115, 70, 35],
  lime: [160, 240, 60],
};
const GROUNDS = { black: [15, 15, 15], grey: [130, 130, 130], white: [240, 240, 240] };
const POSITIONS = {
  "at the top left": [0.28, 0.28],
  "at the top right": [0.72, 0.28],
  "in the centre": [0.5, 0.5],
  "at the bottom left": [0.28, 0.72],
  "at the bottom right": [0.72, 0.72],
};
const SIZES = { small: 0.14, large: 0.27 }; // radius as a share of the side
const NUMBERS = ["", "one", "two", "three", "four", "five"];

const arc = (radius, from, to, points = 40) =>
  Array.from({ length: points }, (_, i) => {
    const angle = from + ((to - from) * i) / (points - 1);
    return [radius * Math.cos(angle), radius * Math.sin(angle)];
  });
const TURN = 2 * Math.PI;

// Outlines as polygons within about the unit circle, y downwards.
const OUTLINES = {
  circle: arc(0.92, 0, TURN, 72),
  square: [[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8], [-0.8, 0.8]],
  triangle: [[0, -1], [0.95, 0.75], [-0.95, 0.75]],
  star: arc(1, -TURN / 4, (3 * TURN) / 4, 11).slice(0, 10).map(([x, y], i) => (i % 2 ? [0.42 * x, 0.42 * y] : [x, y])),
  cross: [
    [-0.3, -1], [0.3, -1], [0.3, -0.3], [1, -0.3], [1, 0.3], [0.3, 0.3],
    [0.3, 1], [-0.3, 1], [-0.3, 0.3], [-1, 0.3], [-1, -0.3], [-0.3, -0.3],
  ],
  heart: Array.from({ length: 120 }, (_, i) => {
    const t = (TURN * i) / 119;
    const y = 13 * Math.cos(t) - 5 * Math.cos(2 * t) - 2 * Math.cos(3 * t) - Math.cos(4 * t);
    return [(16 * Math.sin(t) ** 3) / 17, -y / 17 - 0.1];
  }),
  diamond: [[0, -1.05], [0.68, 0], [0, 1.05], [-0.68, 0]],
  ring: [...arc(1, TURN / 4, 1.25 * TURN), ...arc(0.55, 1.25 * TURN, TURN / 4)],
  crescent: [
    ...arc(1, 0.15 * TURN, 0.85 * TURN),
    ...arc(0.826, 0.7825 * TURN, 0.2175 * TURN).map(([x, y]) => [x + 0.42, y]),
  ],
  arrow: [[-1, -0.25], [0.1, -0.25], [0.1, -0.75], [1, 0], [0.1, 0.75], [0.1, 0.25], [-1, 0.25]],
};

// Words that are true of some of the pictures, and of no others.
export const WORDS = ["a large red circle", "three blue stars", "a yellow heart on a black background"];

const FIRST = [
  { count: 1, shape: "circle", colour: "red", size: "large", position: "in the centre", ground: "white" },
  { count: 3, shape: "star", colour: "blue", ground: "white" },
  { count: 1, shape: "heart", colour: "yellow", size: "large", position: "in the centre", ground: "black" },
];
const PEOPLE = [
  { skin: [238, 196, 168], hair: [92, 58, 34], long: true, iris: [70, 105, 140], width: 0.98 },
  { skin: [154, 102, 70], hair: [28, 22, 20], long: false, iris: [58, 36, 22], width: 1.06 },
  { skin: [246, 212, 188], hair: [212, 168, 92], long: true, iris: [92, 128, 84], width: 0.9 },
  { skin: [214, 166, 128], hair: [104, 102, 106], long: false, iris: [64, 48, 36], width: 1.02, glasses: true },
];
const PORTRAITS = 3; // of each

// Yields {name, source} of `count` shapes and of all portraits, mixed.
export async function* pictures(seed, count = 36) {
  const random = generator(seed);
  const scenes = Array.from({ length: count }, (_, i) => (seed === 1 && FIRST[i]) || scene(random));
  const people = PEOPLE.flatMap((person, i) => Array(PORTRAITS).fill({ person, name: `Portrait of person ${i + 1}` }));
  for (const one of shuffled([...scenes, ...people], random)) {
    if (one.person) yield { name: one.name, source: await jpeg(portrait(one.person, random), 0.92) };
    else yield { name: caption(one), source: await jpeg(drawing(one, random), 0.92) };
  }
}

// Numbers in [0, 1) that depend on the seed alone: mulberry32, which is in the public domain.
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const pick = (random, options) => options[Math.floor(random() * options.length)];
const between = (random, low, high) => low + random() * (high - low);

function shuffled(list, random) {
  for (let i = list.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [list[i], list[j]] = [list[j], list[i]];
  }
  return list;
}

function scene(random) {
  const thing = {
    count: 1,
    shape: pick(random, Object.keys(OUTLINES)),
    colour: pick(random, Object.keys(COLOURS)),
    ground: pick(random, Object.keys(GROUNDS)),
  };
  const kind = random();
  if (kind < 0.3) return { ...thing, count: 2 + Math.floor(random() * 4) };
  if (kind < 0.5) {
    const others = Object.keys(COLOURS).filter((colour) => colour !== thing.colour);
    return { ...thing, other: { shape: pick(random, Object.keys(OUTLINES)), colour: pick(random, others) } };
  }
  return { ...thing, size: pick(random, Object.keys(SIZES)), position: pick(random, Object.keys(POSITIONS)) };
}

function caption({ count, shape, colour, size, position, other, ground }) {
  const one = (words) => `${/^[aeiou]/.test(words) ? "an" : "a"} ${words}`;
  let things = one(`${size ? `${size} ` : ""}${colour} ${shape}`);
  if (count > 1) things = `${NUMBERS[count]} ${colour} ${shape}${shape === "cross" ? "es" : "s"}`;
  if (other) things += ` left of ${one(`${other.colour} ${other.shape}`)}`;
  if (position) things += ` ${position}`;
  return `${things} on a ${ground} background`;
}

function drawing(of, random) {
  const canvas = new OffscreenCanvas(SIDE, SIDE);
  const context = canvas.getContext("2d");
  context.fillStyle = shade(GROUNDS[of.ground], random);
  context.fillRect(0, 0, SIDE, SIDE);
  for (const [thing, x, y, radius] of places(of, random)) {
    const angle = between(random, -0.14, 0.14);
    context.fillStyle = shade(COLOURS[thing.colour], random);
    context.beginPath();
    for (const [px, py] of OUTLINES[thing.shape]) {
      const turned = [px * Math.cos(angle) - py * Math.sin(angle), px * Math.sin(angle) + py * Math.cos(angle)];
      context.lineTo((x + radius * turned[0]) * SIDE, (y + radius * turned[1]) * SIDE);
    }
    context.fill();
  }
  return canvas;
}

// Returns [thing, x, y, radius] of each thing, in shares of the side.
function places(of, random) {
  const near = () => between(random, -0.02, 0.02);
  if (of.other) {
    const radius = between(random, 0.18, 0.22);
    return [
      [of, 0.26 + near(), between(random, 0.4, 0.6), radius],
      [of.other, 0.74 + near(), between(random, 0.4, 0.6), radius],
    ];
  }
  if (of.count === 1) {
    const [x, y] = POSITIONS[of.position];
    return [[of, x + near(), y + near(), SIZES[of.size]]];
  }
  const cells = [0.18, 0.5, 0.82].flatMap((x) => [0.18, 0.5, 0.82].map((y) => [x, y]));
  return shuffled(cells, random).slice(0, of.count).map(([x, y]) => [of, x + near(), y + near(), 0.13]);
}

function shade(colour, random, range = 12) {
  const moved = colour.map((level) => Math.round(Math.min(255, Math.max(0, level + between(random, -range, range)))));
  return `rgb(${moved.join(" ")})`;
}

const mixed = (colour, other, share) => `rgb(${colour.map((level, i) => Math.round(level + (other[i] - level) * share)).join(" ")})`;

// A head and shoulders before a wall, lit from one side: enough of a face for a detector that has seen real ones.
function portrait(person, random) {
  const canvas = new OffscreenCanvas(384, SIDE);
  const context = canvas.getContext("2d");
  const wall = [between(random, 120, 215), between(random, 130, 215), between(random, 140, 220)];
  const light = context.createLinearGradient(0, 0, 384, SIDE);
  light.addColorStop(0, mixed(wall, [255, 255, 255], 0.35));
  light.addColorStop(1, mixed(wall, [20, 20, 40], 0.25));
  context.fillStyle = light;
  context.fillRect(0, 0, 384, SIDE);
  context.translate(192 + between(random, -16, 16), 215 + between(random, -12, 12));
  context.rotate(between(random, -0.06, 0.06));
  const size = between(random, 0.95, 1.1);
  context.scale(size, size);
  body(context, person, [between(random, 30, 160), between(random, 50, 130), between(random, 70, 160)]);
  head(context, person, between(random, 0.2, 1));
  return canvas;
}

function ellipse(context, x, y, width, height, fill) {
  context.fillStyle = fill;
  context.beginPath();
  context.ellipse(x, y, width, height, 0, 0, TURN);
  context.fill();
}

function body(context, { skin, hair, long, width }, cloth) {
  if (long) {
    context.fillStyle = mixed(hair, [0, 0, 0], 0.25);
    context.beginPath();
    context.roundRect(-104 * width, -70, 208 * width, 210, 60);
    context.fill();
  }
  context.fillStyle = mixed(skin, [60, 20, 10], 0.3);
  context.fillRect(-34, 70, 68, 90);
  context.fillStyle = mixed(cloth, [0, 0, 0], 0);
  context.beginPath();
  context.ellipse(0, 290, 165, 150, 0, Math.PI, TURN);
  context.fill();
}

function head(context, { skin, hair, iris, width, long, glasses }, smile) {
  const w = 84 * width;
  ellipse(context, 0, -34, w * 1.12, long ? 104 : 96, mixed(hair, [0, 0, 0], 0.1));
  const side = context.createRadialGradient(-28, -26, 20, 0, 0, 130);
  side.addColorStop(0, mixed(skin, [255, 255, 255], 0.16));
  side.addColorStop(0.6, mixed(skin, [0, 0, 0], 0));
  side.addColorStop(1, mixed(skin, [70, 25, 10], 0.5));
  ellipse(context, 0, 6, w, 108, side);
  context.fillStyle = mixed(hair, [255, 255, 255], 0.06);
  context.beginPath();
  context.ellipse(0, -62, w * 0.98, 54, 0, Math.PI, TURN);
  context.ellipse(0, -62, w * 0.98, 16, 0, TURN, Math.PI);
  context.fill();
  const dark = mixed(skin, [60, 20, 10], 0.45);
  const apart = w * 0.44;
  for (const at of [-apart, apart]) {
    ellipse(context, at, -13, 23, 13, mixed(skin, [60, 20, 10], 0.22));
    ellipse(context, at, -11, 17, 9, "rgb(240 238 236)");
    ellipse(context, at, -11, 8.5, 8.5, mixed(iris, [0, 0, 0], 0));
    ellipse(context, at, -11, 4, 4, "rgb(15 12 12)");
    ellipse(context, at - 3, -14, 2, 2, "white");
    context.strokeStyle = mixed(hair, [0, 0, 0], 0.3);
    context.lineWidth = 6;
    context.beginPath();
    context.ellipse(at, -24, 23, 12, 0, 1.1 * Math.PI, 1.9 * Math.PI);
    context.stroke();
  }
  context.strokeStyle = dark;
  context.lineWidth = 3;
  context.beginPath();
  context.moveTo(-4, -6);
  context.quadraticCurveTo(-18, 30, -12, 34);
  context.quadraticCurveTo(0, 43, 13, 34);
  context.stroke();
  ellipse(context, -7, 35, 4, 2.5, dark);
  ellipse(context, 7, 35, 4, 2.5, dark);
  context.fillStyle = mixed([178, 78, 78], skin, 0.25);
  context.beginPath();
  context.moveTo(-30, 62);
  context.quadraticCurveTo(0, 54, 30, 62);
  context.quadraticCurveTo(0, 72 + 16 * smile, -30, 62);
  context.fill();
  if (glasses) {
    context.strokeStyle = "rgb(38 36 42)";
    context.lineWidth = 4;
    context.beginPath();
    for (const at of [-apart, apart]) context.roundRect(at - 27, -32, 54, 40, 14);
    context.moveTo(-apart + 27, -14);
    context.lineTo(apart - 27, -14);
    context.stroke();
  }
}
