// Pixels of a slice: grey or colours in a window, what was found over it.

const ROUND = 255;

// Brightness of a stored number between those that are black and white.
export function grey(value, low, high) {
  return value <= low ? 0 : value >= high ? 255 : (255 * (value - low)) / (high - low);
}

// Percentiles of a volume, from about a hundred thousand of its values.
export function automaticWindow(values, low = 0.01, high = 0.995) {
  const step = Math.max(1, Math.floor(values.length / 100000));
  const some = [];
  for (let i = 0; i < values.length; i += step) some.push(values[i]);
  some.sort((a, b) => a - b);
  const at = (share) => some[Math.min(some.length - 1, Math.floor(share * some.length))];
  return [at(low), Math.max(at(high), at(low) + 1)];
}

export function countFrom(probability, threshold) {
  const least = Math.max(1, Math.ceil(threshold * ROUND - 1e-6));
  let voxels = 0;
  for (let i = 0; i < probability.length; i++) if (probability[i] >= least) voxels++;
  return voxels;
}

export function reaches(probability, threshold) {
  return probability >= Math.max(1, Math.ceil(threshold * ROUND - 1e-6));
}

// Whether a voxel of a region has a neighbour in its slice that is not of it.
export function isRim(numbers, place, rows, columns) {
  const own = numbers[place];
  const column = place % columns;
  const row = (place - column) / columns;
  return (
    row === 0 || row === rows - 1 || column === 0 || column === columns - 1 ||
    numbers[place - 1] !== own || numbers[place + 1] !== own ||
    numbers[place - columns] !== own || numbers[place + columns] !== own
  );
}

export function blend(pixels, place, colour, opacity) {
  for (let i = 0; i < 3; i++) pixels[4 * place + i] = (1 - opacity) * pixels[4 * place + i] + opacity * colour[i];
}

// From black over red and yellow to white.
export function heat(share) {
  return [Math.min(255, 765 * share), Math.min(255, Math.max(0, 765 * share - 255)), Math.max(0, 765 * share - 510)];
}
