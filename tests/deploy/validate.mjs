// Validates a PodMonitor or PrometheusRule on stdin (JSON) against the Prometheus operator's own definitions: its values
// by the schema, and its names by the types, for which alone an unknown key is a fault.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as models from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/index";
import ts from "typescript";

const text = readFileSync(0, "utf8");
const resource = JSON.parse(text);
new models[resource.kind](resource).validate();

const name = fileURLToPath(new URL("resource.mts", import.meta.url));
const source = `import type { I${resource.kind} } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
const resource: I${resource.kind} = ${text};\nexport default resource;\n`;
const options = { noEmit: true, strict: true, module: ts.ModuleKind.NodeNext, types: [], skipLibCheck: true };
const host = ts.createCompilerHost(options);
const { fileExists, getSourceFile } = host;
host.fileExists = (path) => path === name || fileExists(path);
host.getSourceFile = (path, ...rest) =>
  path === name ? ts.createSourceFile(path, source, ts.ScriptTarget.ESNext) : getSourceFile(path, ...rest);
const faults = ts.getPreEmitDiagnostics(ts.createProgram([name], options, host));
if (faults.length) {
  console.error(ts.formatDiagnostics(faults, host));
  process.exit(1);
}
