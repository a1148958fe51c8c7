// One picture in the browser: what is sent of it, its thumbnail, its faces cut out, and the files of a drop.
// Of a photo only small pictures stay in memory; the file itself stays on disk until it is looked at.

const SENT_SIDE = 1440; // what photo apps send: the long side of a preview
const THUMB_SIDE = 400;
const FACE_SIDE = 128;
const FACE_ROOM = 0.35; // around a face, as a share of its box
const PICTURE = /\.(avif|bmp|gif|heic|heif|jpe?g|jfif|png|tiff?|webp)$/i;

// Returns {body, thumb, canvas}: the bytes to send, a small picture, and the pixels to cut faces from. A file that this
// browser cannot decode is sent as it is, for the server to judge, and has neither thumb nor canvas.
export async function prepare(source) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(source); // upright, as its EXIF says
  } catch {
    return { body: source, thumb: null, canvas: null };
  }
  const share = Math.min(1, SENT_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = scaled(bitmap, share);
  bitmap.close();
  const asItIs = share === 1 && !(await mayBeTurned(source));
  return {
    body: asItIs ? source : await jpeg(canvas, 0.9),
    thumb: await jpeg(scaled(canvas, Math.min(1, THUMB_SIDE / Math.max(canvas.width, canvas.height))), 0.82),
    canvas,
  };
}

// Returns a small square picture of a face, `share` being the canvas's size to that of which `box` is told.
export function cut(canvas, box, share) {
  const side = Math.max(box.x2 - box.x1, box.y2 - box.y1) * (1 + 2 * FACE_ROOM) * share;
  const left = ((box.x1 + box.x2) / 2) * share - side / 2;
  const top = ((box.y1 + box.y2) / 2) * share - side / 2;
  const out = new OffscreenCanvas(FACE_SIDE, FACE_SIDE);
  const context = out.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas, left, top, side, side, 0, 0, FACE_SIDE, FACE_SIDE);
  return jpeg(out, 0.85);
}

export function jpeg(canvas, quality) {
  return canvas.convertToBlob({ type: "image/jpeg", quality });
}

function scaled(picture, share) {
  const canvas = new OffscreenCanvas(
    Math.max(1, Math.round(picture.width * share)),
    Math.max(1, Math.round(picture.height * share)),
  );
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // behind what is transparent: JPEGs have no such thing
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// The server takes pixels as they are, so that a picture which its file may turn is sent as it was drawn here. What turns
// it stands anywhere in the file: EXIF as JPEG, PNG and WebP name it, and the boxes of AVIF that turn and mirror.
async function mayBeTurned(source) {
  const bytes = new TextDecoder("latin1").decode(await source.arrayBuffer());
  return /Exif\0\0|eXIf|EXIF|irot|imir/.test(bytes);
}

export const isPicture = (file) => file.type.startsWith("image/") || PICTURE.test(file.name);

// Yields the pictures of a drop, folders and their folders included. The entries must be taken before the drop's event
// is over, so call this in it.
export function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  return walk(entries);
}

async function* walk(entries) {
  for (const entry of entries) {
    if (entry.isDirectory) {
      yield* walk(await children(entry));
    } else {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      if (isPicture(file)) yield file;
    }
  }
}

async function children(directory) {
  const reader = directory.createReader();
  const all = [];
  for (;;) {
    // A folder comes in parts, and an empty part is the end.
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!part.length) return all;
    all.push(...part);
  }
}
