// One JSON line per finished test, for tests/integration/test_js_sdk.py.
export default async function* reporter(source) {
  for await (const event of source) {
    if (event.type !== 'test:pass' && event.type !== 'test:fail') continue
    if (event.data.nesting !== 0) continue
    const error = event.data.details?.error
    const cause = error?.cause
    yield JSON.stringify({
      name: event.data.name,
      passed: event.type === 'test:pass',
      skipped: event.data.skip !== undefined,
      detail: error ? String(cause?.stack ?? cause ?? error.stack ?? error) : '',
    }) + '\n'
  }
}
