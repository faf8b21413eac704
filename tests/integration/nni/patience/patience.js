// Lets NNI's manager wait for its tuner: it gives up after ten seconds, and the machine may be busy.
// Node.js loads this at its start where NODE_OPTIONS requires it.
const setTimer = global.setTimeout;
global.setTimeout = (call, delay, ...rest) =>
  setTimer(call, delay === 10000 ? 120000 : delay, ...rest);
