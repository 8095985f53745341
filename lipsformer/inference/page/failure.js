// Why a photo has no answer.

/** Says it in words; `again` says whether trying again may help. */
export class Failure extends Error {
  constructor(title, detail, again) {
    super(title);
    Object.assign(this, { title, detail, again });
  }
}

export function unreadable() {
  const detail = "It was moved or changed since you chose it, or it is a folder. Choose the photo itself.";
  return new Failure("This file cannot be read", detail, false);
}
