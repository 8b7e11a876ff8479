"""A page to try a model in a browser: one box, one answer as it comes. It loads nothing else."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{name}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem }
textarea { width: 100%; height: 5rem; font: inherit; padding: .5rem; box-sizing: border-box }
button { font: inherit; margin: .5rem .5rem 0 0; padding: .25rem 1rem }
#answer { white-space: pre-wrap; border-top: 1px solid #bbb; margin-top: 1rem; padding-top: 1rem }
</style>
<h1>{name}</h1>
<form>
<textarea name="question" autofocus placeholder="Ask something"></textarea>
<button>Ask</button><button type="button" id="stop">Stop</button>
<label>token <input name="token" type="password" size="12"></label>
</form>
<div id="answer"></div>
<script>
const form = document.querySelector("form"), answer = document.querySelector("#answer")
let running = new AbortController()
document.querySelector("#stop").onclick = () => running.abort()
form.onsubmit = async event => {
  event.preventDefault()
  running.abort()
  running = new AbortController()
  answer.textContent = ""
  const headers = {"Content-Type": "application/json"}
  if (form.token.value) headers.Authorization = "Bearer " + form.token.value
  const messages = [{role: "user", content: form.question.value}]
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers, signal: running.signal,
      body: JSON.stringify({messages, stream: true, temperature: 0, max_tokens: 256})
    })
    if (!response.ok) throw new Error((await response.json()).error.message)
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
    let rest = ""
    for (;;) {
      const {value, done} = await reader.read()
      if (done) break
      const lines = (rest + value).split("\\n")
      rest = lines.pop()
      for (const line of lines) {
        if (!line.startsWith("data: {")) continue
        const told = JSON.parse(line.slice(6))
        if (told.error) throw new Error(told.error.message)
        answer.textContent += told.choices[0]?.delta.content ?? ""
      }
    }
  } catch (error) {
    if (error.name != "AbortError") answer.textContent += error.message
  }
}
</script>
</html>
"""
