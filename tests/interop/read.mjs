// Prints arrays of a Zarr group as JSON: node read.mjs FOLDER NAME…; floats as text, for NaN.
import * as zarr from "zarrita";
import { FileSystemStore } from "@zarrita/storage";

const [folder, ...names] = process.argv.slice(2);
const root = zarr.root(new FileSystemStore(folder));
const found = {};
for (const name of names) {
  const array = await zarr.open(root.resolve(name), { kind: "array" });
  const chunk = await zarr.get(array);
  found[name] = {
    dtype: array.dtype,
    shape: chunk.shape,
    data: Array.from(chunk.data, String),
  };
}
console.log(JSON.stringify(found));
