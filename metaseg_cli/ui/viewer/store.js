// Arrays that Python has sent, one per slot; they leave with the element that brought them. Viewer and carriers are
// scripts of their own: they meet in the window.

const { arrays, listeners } = (globalThis.metasegArrays ??= { arrays: new Map(), listeners: new Set() });

// Bytes are the length of a JSON header (4, little endian), the header and the values.
export function decode(bytes) {
  const copy = bytes.slice(); // what arrives may begin at an odd byte, where 16-bit numbers cannot
  const length = new DataView(copy.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(copy.subarray(4, 4 + length)));
  const values = copy.slice(4 + length);
  return { ...header, values: header.type === "uint16" ? new Uint16Array(values.buffer) : values };
}

export function put(slot, array) {
  arrays.set(slot, array);
  listeners.forEach((listen) => listen());
}

export function take(slot, id) {
  const found = arrays.get(slot);
  return found && found.id === id ? found : null;
}

export function drop(slot, array) {
  if (arrays.get(slot) === array) arrays.delete(slot);
}

export function whenChanged(listen) {
  listeners.add(listen);
  return () => listeners.delete(listen);
}
