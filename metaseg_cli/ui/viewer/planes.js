// Planes of a volume (Z, Y, X) whose x runs to the patient's left, y to the back and z to the head.

// Rows and columns are axes of the volume (0 z, 1 y, 2 x); a flipped row axis begins at its end: the head is on top.
export const PLANES = {
  axial: { through: 0, row: 1, column: 2, flipped: false, letters: ["A", "P", "R", "L"] },
  coronal: { through: 1, row: 0, column: 2, flipped: true, letters: ["S", "I", "R", "L"] },
  sagittal: { through: 2, row: 0, column: 1, flipped: true, letters: ["S", "I", "A", "P"] },
};

export function planeSize(plane, shape) {
  return [shape[plane.row], shape[plane.column]];
}

// The voxel (z, y, x) in row and column of the slice that goes through the voxel `at`.
export function voxelAt(plane, shape, at, row, column) {
  const voxel = [...at];
  voxel[plane.row] = plane.flipped ? shape[plane.row] - 1 - row : row;
  voxel[plane.column] = column;
  return voxel;
}

// Row and column of the voxel `at` in its slice.
export function placeOf(plane, shape, at) {
  return [plane.flipped ? shape[plane.row] - 1 - at[plane.row] : at[plane.row], at[plane.column]];
}

// Calls `draw(place in the slice, place in the volume)` for each voxel of the slice.
export function eachVoxel(plane, shape, index, draw) {
  const steps = [shape[1] * shape[2], shape[2], 1];
  const [rows, columns] = planeSize(plane, shape);
  const rowStep = plane.flipped ? -steps[plane.row] : steps[plane.row];
  let start = index * steps[plane.through] + (plane.flipped ? (rows - 1) * steps[plane.row] : 0);
  for (let row = 0, place = 0; row < rows; row++, start += rowStep) {
    for (let column = 0, voxel = start; column < columns; column++, voxel += steps[plane.column]) draw(place++, voxel);
  }
}

export function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
