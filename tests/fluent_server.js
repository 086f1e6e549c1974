// FluentServer of @fluent-org/logger, as its options say.  What it prints, a line each: its port;
// then each entry's tag, seconds, nanoseconds and record as JSON.
const { FluentServer, EventTime } = require("@fluent-org/logger");
const fs = require("fs");

const given = JSON.parse(process.argv[2]);
const options = { listenOptions: { port: 0, host: "127.0.0.1" } };
if (given.security) options.security = given.security;
if (given.tls) {
  options.tlsOptions = { key: fs.readFileSync(given.tls.key), cert: fs.readFileSync(given.tls.cert) };
  if (given.tls.ca) {
    Object.assign(options.tlsOptions, {
      ca: fs.readFileSync(given.tls.ca), requestCert: true, rejectUnauthorized: true,
    });
  }
}
const server = new FluentServer(options);
server.on("entry", (tag, time, record) => {
  const when = time instanceof EventTime ? [time.epoch, time.nano] : [time, -1];
  console.log(JSON.stringify([tag, ...when, record]));
});
server.listen().then(() => console.log(server.port));
process.stdin.on("end", () => process.exit(0)).resume();
