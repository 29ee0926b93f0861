// Print name, version and license text of every package in an esbuild metafile.
const fs = require("fs");
const path = require("path");
const inputs = Object.keys(JSON.parse(fs.readFileSync(process.argv[2], "utf8")).inputs);
const folders = inputs.map((file) => file.match(/^(node_modules\/(?:@[^/]+\/)?[^/]+)\//)).filter(Boolean).map((found) => found[1]);
for (const folder of [...new Set(folders)].sort()) {
  const { name, version, license } = JSON.parse(fs.readFileSync(path.join(folder, "package.json"), "utf8"));
  const file = fs.readdirSync(folder).find((one) => /^licen[cs]e/i.test(one));
  if (!file) throw new Error(`${name} has no license file`);
  console.log(`${name} ${version} (${license})\n\n${fs.readFileSync(path.join(folder, file), "utf8").trim()}\n\n${"-".repeat(80)}\n`);
}
