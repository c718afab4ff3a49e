// Browsers start no worker from a file, so that pages opened from a folder would have no search. There its script runs in
// a hidden frame. The theme's offline plug-in would load such a script from a CDN; it knows this one by the file's name.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inner = this.frame.contentWindow;
      inner.postMessage = (data) => this.told("message", data);
      inner.importScripts = (...sources) =>
        sources.reduce((before, source) => before.then(() => this.load(source)), Promise.resolve());
      this.ready = this.load(url);
      this.ready.catch(() => this.told("error"));
    }

    load(url) {
      return new Promise((done, failed) => {
        const script = this.frame.contentDocument.createElement("script");
        Object.assign(script, { src: url, onload: done, onerror: failed });
        this.frame.contentDocument.body.append(script);
      });
    }

    told(kind, data) {
      const event = new MessageEvent(kind, { data });
      this["on" + kind]?.(event);
      this.dispatchEvent(event);
    }

    postMessage(data) {
      const inner = this.frame.contentWindow;
      this.ready.then(() => {
        const event = new inner.MessageEvent("message", { data });
        inner.onmessage?.(event);
        inner.dispatchEvent(event);
      });
    }

    terminate() {
      this.frame.remove();
    }
  };
  window.Worker = window.IFrameWorker;
}
