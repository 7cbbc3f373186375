// @ts-check
// What the server sends (sdlab/ui/flat_view.py): a header in JSON, then arrays of numbers.

/**
 * @typedef {[number, number]} Point
 *
 * @typedef {Float32Array | Int32Array | Int16Array | Uint8Array} Numbers
 *
 * @typedef {{ shape: number[], data: Numbers }} Table
 *
 * A prediction that the loss combines. `sign` turns it into a pull: a prediction of noise pulls away from the noise it
 * sees (-1), one that the loss subtracts pulls the other way (1).
 * @typedef {{ name: string, symbol: [string, string], text: string, sign: 1 | -1, colour: string, broad: boolean }} Term
 *
 * @typedef {{ at: Point, range: [Point, Point], locked: boolean }} Start
 *
 * @typedef {{ version: string, step: number, planned: number, prompt: string, ground: string, start: Start | null,
 *   loss: { kind: string, title: string, formula: string, colours: Record<string, string> } }} Common
 *
 * @typedef {Common & { kind: "plane", run: number, unit: number, terms: Term[], held: number[], reached: number,
 *   fit: [number, number, number, number] | null, arrays: Record<string, Table> }} PlaneFrame
 *
 * @typedef {Common & { kind: "pictures", count: number, size: Point, after: number,
 *   arrays: { sheet: Table, saturations: Table } }} PicturesFrame
 *
 * @typedef {{ kind: "plane", ground: string, reach: number, names: string[],
 *   arrays: { alphas_cumprod: Table, asked: Table, all: Table } }} PlaneGround
 *
 * @typedef {{ kind: "pictures", ground: string, true: number | null, arrays: {} }} PicturesGround
 *
 * @typedef {PlaneFrame | PicturesFrame} Frame
 * @typedef {PlaneGround | PicturesGround} Ground
 */

const ARRAYS = { float32: Float32Array, int32: Int32Array, int16: Int16Array, uint8: Uint8Array };

/**
 * Read one message: the header, with its arrays as views of `buffer`.
 * @param {ArrayBuffer} buffer
 * @returns {any}
 */
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  for (const [name, value] of Object.entries(header.arrays)) {
    const [type, shape, offset] = /** @type {[keyof typeof ARRAYS, number[], number]} */ (value);
    const size = shape.reduce((a, b) => a * b, 1);
    header.arrays[name] = { shape, data: new ARRAYS[type](buffer, 4 + length + offset, size) };
  }
  return header;
}
