import { readFile } from "node:fs/promises";
import { Parser } from "@asyncapi/parser";
const { document, diagnostics } = await new Parser().parse(await readFile(process.argv[2], "utf8"));
console.log(JSON.stringify({ valid: document !== undefined, diagnostics }));
