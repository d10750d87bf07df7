// Masks as pictures that can be drawn quickly: a filled one and an outline, in one colour.

const LARGEST = 1600; // pixels of the longer side; larger masks are shown coarser

// dataUrl: a PNG of black and white. Resolves to {fill, edge}: canvases, stretched over the image.
export async function maskPictures(dataUrl, colour) {
  const image = new Image();
  image.src = dataUrl;
  await image.decode();
  const scale = Math.min(1, LARGEST / Math.max(image.width, image.height));
  const width = Math.max(1, Math.round(image.width * scale));
  const height = Math.max(1, Math.round(image.height * scale));
  const fill = blank(width, height);
  const context = fill.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  const inside = new Uint8Array(width * height);
  for (let at = 0; at < inside.length; at++) inside[at] = pixels.data[4 * at] > 127 ? 1 : 0;
  const edge = blank(width, height);
  const edges = edge.getContext("2d");
  const lines = edges.createImageData(width, height);
  const [red, green, blue] = colour;
  const reach = Math.max(1, Math.round(Math.max(width, height) / 450));
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = y * width + x;
      const alpha = inside[at] ? 255 : 0;
      pixels.data.set([red, green, blue, alpha], 4 * at);
      if (alpha && onEdge(inside, x, y, width, height, reach)) lines.data.set([red, green, blue, 255], 4 * at);
    }
  }
  context.putImageData(pixels, 0, 0);
  edges.putImageData(lines, 0, 0);
  return { fill, edge };
}

function onEdge(inside, x, y, width, height, reach) {
  const outside = (u, v) => u < 0 || v < 0 || u >= width || v >= height || !inside[v * width + u];
  return outside(x - reach, y) || outside(x + reach, y) || outside(x, y - reach) || outside(x, y + reach);
}

export function blank(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}
