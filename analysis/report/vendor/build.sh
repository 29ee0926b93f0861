#!/bin/sh
# Build plot.min.js and LICENSES.txt from the pinned versions (package-lock.json): sh analysis/report/vendor/build.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here/package.json" "$here/package-lock.json" "$here/entry.js" "$here/licenses.js" "$work"
cd "$work"
npm ci --ignore-scripts --no-audit --no-fund --silent
npx esbuild entry.js --bundle --minify --format=iife --global-name=Plot --target=es2020 --legal-comments=none \
    --charset=ascii --metafile=meta.json --outfile=plot.min.js --log-level=warning
node licenses.js meta.json > LICENSES.txt
cp plot.min.js LICENSES.txt "$here"
