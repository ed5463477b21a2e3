import { decode, drop, put } from "./store.js";

// Keeps an array in the page as long as this element is there.
export default function carrier({ data, parentElement }) {
  const array = decode(data);
  put(array.slot, array);
  return () => drop(array.slot, array);
}
