// The search dialog on top of Pagefind, which is loaded when the dialog first opens.
// The dialog and all its words come from docs/overrides/partials/search-dialog.html.
(() => {
  const dialog = document.querySelector("[data-kb-search]")
  if (!dialog || !dialog.showModal) return

  const PAGE = 8
  const input = dialog.querySelector("input[type=search]")
  const filters = [...dialog.querySelectorAll("select")]
  const status = dialog.querySelector(".kb-search-status")
  const list = dialog.querySelector(".kb-search-results")
  const more = dialog.querySelector(".kb-search-more")

  let engine = null
  let latest = 0
  let found = []

  // A title names the page's own subject, and kw holds its other names, so both outweigh the text.
  async function load() {
    const pagefind = await import(new URL(dialog.dataset.index, location.href).href)
    await pagefind.options({
      baseUrl: new URL(dialog.dataset.root, location.href).pathname,
      excerptLength: 24,
      ranking: { metaWeights: { title: 8, kw: 4, section: 0.5 } },
    })
    await pagefind.init()
    fillFilters(await pagefind.filters())
    return pagefind
  }

  function fillFilters(values) {
    for (const select of filters) {
      const names = Object.keys(values[select.name] ?? {}).sort((a, b) => a.localeCompare(b))
      select.append(...names.map((name) => new Option(name, name)))
      select.parentElement.hidden = names.length < 2
    }
    dialog.querySelector(".kb-search-filters").hidden = filters.every((select) => select.parentElement.hidden)
  }

  function open(query = "") {
    if (dialog.open) return
    dialog.showModal()
    input.value ||= query
    input.select()
    prepare().then(() => input.value && search())
  }

  async function prepare() {
    engine ??= load()
    try {
      return await engine
    } catch {
      engine = null
      status.textContent = dialog.dataset.failed
      return null
    }
  }

  async function search() {
    const turn = ++latest
    const query = input.value.trim()
    const chosen = Object.fromEntries(filters.filter((f) => f.value).map((f) => [f.name, f.value]))
    if (!query && !Object.keys(chosen).length) return clear()
    const pagefind = await prepare()
    if (!pagefind) return
    status.textContent ||= dialog.dataset.searching
    const answer = await pagefind.search(query || null, { filters: chosen })
    const near = answer.results.slice(0, 2 * PAGE)
    const pages = await Promise.all(near.map((result) => result.data()))
    const order = [...near.keys()].sort((a, b) => named(query, pages[b]) - named(query, pages[a]))
    const results = [...order.map((i) => near[i]), ...answer.results.slice(near.length)]
    if (turn === latest) show(results, query, order.slice(0, PAGE).map((i) => pages[i]))
  }

  // Many titles hold the name of a method; the page that bears just this name comes before them.
  function named(query, page) {
    const wanted = words(query).join(" ")
    const names = page.meta.title.split(/[()]/).map((name) => words(name).join(" "))
    return names.includes(wanted)
  }

  function clear() {
    show([], "", [])
    status.textContent = ""
  }

  function show(results, query, first) {
    found = results
    list.replaceChildren(...first.map(item))
    more.hidden = results.length <= first.length
    dialog.scrollTop = 0
    const { none, one, many, inexact } = dialog.dataset
    if (query && first.length && !first.some((page) => shares(query, page))) status.textContent = inexact
    else status.textContent = [none, one][results.length] ?? many.replace("{n}", results.length)
  }

  async function showMore() {
    const shown = list.children.length
    const next = await Promise.all(found.slice(shown, shown + PAGE).map((result) => result.data()))
    list.append(...next.map(item))
    more.hidden = list.children.length >= found.length
    list.children[shown]?.querySelector("a").focus()
  }

  function item(page) {
    const link = Object.assign(document.createElement("a"), { href: page.url })
    link.append(element("strong", page.meta.title))
    if (page.meta.section) link.append(element("span", page.meta.section))
    const excerpt = element("p", "")
    excerpt.append(...marked(page.excerpt))
    link.append(excerpt)
    const entry = document.createElement("li")
    entry.append(link)
    return entry
  }

  function element(name, text) {
    return Object.assign(document.createElement(name), { textContent: text })
  }

  // Keeps the <mark>s of an excerpt and nothing else of its HTML.
  function marked(html) {
    const nodes = new DOMParser().parseFromString(html, "text/html").body.childNodes
    return [...nodes].map((node) => (node.nodeName === "MARK" ? element("mark", node.textContent) : node.textContent))
  }

  // Pagefind cuts an unknown word back until something matches. That is an answer to another
  // question unless a page has a word that begins like one asked for.
  function shares(query, page) {
    const wanted = words(query)
    const has = words([page.meta.title, page.meta.kw, page.content].join(" "))
    return !wanted.length || wanted.some((word) => has.some((other) => alike(word, other)))
  }

  function alike(a, b) {
    const [short, long] = a.length < b.length ? [a, b] : [b, a]
    return short === long || (short.length > 2 && short.length >= 0.6 * long.length && long.startsWith(short))
  }

  function words(text) {
    return fold(text).split(/[^\p{L}\p{N}]+/u).filter(Boolean)
  }

  function fold(text) {
    return text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase()
  }

  function move(step) {
    const stops = [input, ...list.querySelectorAll("a")]
    const at = stops.indexOf(document.activeElement)
    stops[Math.min(Math.max(at + step, 0), stops.length - 1)].focus()
  }

  let pause
  const later = () => {
    clearTimeout(pause)
    pause = setTimeout(search, 120)
  }
  input.addEventListener("input", later)
  for (const select of filters) select.addEventListener("change", search)
  more.addEventListener("click", showMore)
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close())
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation() // the theme has shortcuts of its own
    if (event.target.matches("select")) return
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault()
      move(event.key === "ArrowDown" ? 1 : -1)
    } else if (event.key === "Escape") {
      event.preventDefault() // a search field would only empty itself
      dialog.close()
    } else if (event.key === "Enter" && event.target === input) {
      event.preventDefault()
      search().then(() => list.querySelector("a")?.click())
    }
  })
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, [contenteditable]")
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return
    event.preventDefault()
    open()
  })
  for (const button of document.querySelectorAll("[data-kb-search-open]")) {
    button.addEventListener("click", () => open())
    button.addEventListener("pointerenter", prepare, { once: true })
  }
  const asked = new URLSearchParams(location.search).get("q")
  if (asked) open(asked)
})()
