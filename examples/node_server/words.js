// The module: what happens to a package. Replace this file by yours.
"use strict";

exports.name = "words";
exports.version = "1.0.0";
exports.contentTypes = ["text/plain"]; // none: whatever comes
exports.capacity = 16; // packages at a time; what comes beyond waits in the server

// Throw this for a package that shall go no further: it leaves the pipeline as EXIT.
class Exit extends Error {}
exports.Exit = Exit;

// Upper-case text, and how many words it has. `signal` says when nobody waits for it any more.
exports.run = async function run(pkg, signal) {
  // What is thrown here makes the package leave as ERROR, with type, message and stack.
  const text = new TextDecoder("utf-8", { fatal: true }).decode(pkg.data);
  const words = text.split(/\s+/).filter(Boolean).length;
  if (words === 0) throw new Exit("there are no words in it");
  // A real module would await a model here, and pass it `signal`.
  signal.throwIfAborted();
  return {
    data: Buffer.from(text.toUpperCase()),
    contentType: "text/plain; charset=utf-8",
    // All of them: what is left out is gone.
    attributes: { ...pkg.attributes, words: String(words) },
    message: `${words} words`,
  };
};
