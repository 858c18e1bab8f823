// Unpacks the headless Chromium of the npm package into the folder `chromium` beside `node_modules`, with its fonts and
// the shared libraries that a bare machine lacks. It is built for Linux on x86-64 only.

import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { inflate } from "@sparticuz/chromium";

if (process.platform === "linux" && process.arch === "x64") {
  const folder = join(import.meta.dirname, "chromium");
  const unfinished = (process.env.TMPDIR = `${folder}.unfinished`); // the package unpacks into TMPDIR
  await rm(unfinished, { recursive: true, force: true });
  await mkdir(unfinished);
  for (const archive of ["chromium.br", "swiftshader.tar.br", "al2023.tar.br", "fonts.tar.br"]) {
    await inflate(join(import.meta.dirname, "node_modules/@sparticuz/chromium/bin", archive));
  }
  const fonts = join(unfinished, "fonts", "fonts.conf");
  await writeFile(fonts, (await readFile(fonts, "utf8")).replaceAll("/tmp/", `${folder}/`));
  await rm(folder, { recursive: true, force: true });
  await rename(unfinished, folder);
}
