//! What can be done on a page, command by command. Elements are looked for in a world of their own, so that a page's
//! scripts can neither see nor disturb that.

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::cdp::CdpError;
use crate::program::Key;

/// Elements that one look may find.
pub(crate) const MAX_ELEMENTS: usize = 20_000;
/// All handles of one step, let go of together.
const GROUP: &str = "errand";

/// A page of a browser.
#[derive(Clone)]
pub(crate) struct Page<'a> {
    pub(crate) browser: &'a Browser,
    pub(crate) target: String,
    session: String,
    /// The world for looking.
    context: i64,
}

/// An element; good as long as its document is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element(pub(crate) String);

/// What is known of elements that were found together.
#[derive(Debug)]
pub(crate) struct Found {
    /// The list itself.
    list: String,
    pub(crate) facts: Vec<Facts>,
}

/// What is known of one of them.
#[derive(Debug, Clone, serde::Deserialize)]
pub(crate) struct Facts {
    /// Its text, or what names it.
    pub(crate) texts: Vec<String>,
    pub(crate) visible: bool,
}

/// Where and whether an element can be clicked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ready {
    At(i64, i64),
    Disabled,
    Covered,
    Hidden,
}

/// A text as people see it: runs of white space are one blank.
pub(crate) fn normal(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

const BY_CSS: &str = "function(scope, what) { return [...(scope || document).querySelectorAll(what)]; }";
const BY_XPATH: &str = "function(scope, what) {
    const found = document.evaluate(what, scope || document, null, XPathResult.ORDERED_NODE_SNAPSHOT_TYPE, null);
    const all = [];
    for (let at = 0; at < found.snapshotLength; at++) {
        const node = found.snapshotItem(at);
        if (node.nodeType === Node.ELEMENT_NODE) all.push(node);
    }
    return all;
}";
const LABELLED: &str = "function(scope) {
    return [...(scope || document).querySelectorAll(
        'input:not([type=hidden]), select, textarea, [contenteditable=\"\"], [contenteditable=true], [role=textbox], [role=combobox]')];
}";
const WITH_TEXT: &str = "function(scope) {
    const root = scope || document.body || document.documentElement, all = [];
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_ELEMENT);
    for (let node = root; node; node = walker.nextNode()) {
        if (['SCRIPT', 'STYLE', 'NOSCRIPT', 'TEMPLATE', 'HEAD'].includes(node.tagName)) continue;
        const own = [...node.childNodes].some(child => child.nodeType === Node.TEXT_NODE && child.nodeValue.trim());
        if (own || (node.tagName === 'INPUT' && ['submit', 'button', 'reset'].includes(node.type))) all.push(node);
    }
    return all;
}";
const FACTS: &str = "function(kind) {
    const text = node => (node.textContent || '').slice(0, 4096);
    const named = node => {
        const by = (node.getAttribute('aria-labelledby') || '').split(/\\s+/).filter(Boolean)
            .map(id => document.getElementById(id)).filter(Boolean).map(text).join(' ');
        return [by, node.getAttribute('aria-label'), ...[...(node.labels || [])].map(text), node.placeholder, node.title]
            .filter(Boolean);
    };
    return this.map(node => {
        const box = node.getBoundingClientRect();
        const visible = node.checkVisibility({visibilityProperty: true}) && (box.width > 0 || box.height > 0
            || node.getClientRects().length > 0 || getComputedStyle(node).display === 'contents');
        const texts = kind === 'label' ? named(node)
            : kind === 'text' ? [node.tagName === 'INPUT' ? node.value : text(node)] : [];
        return {texts, visible};
    });
}";
const READY: &str = "function() {
    if (!this.isConnected) return 'hidden';
    if (this.matches(':disabled') || this.closest('[aria-disabled=true]')) return 'disabled';
    this.scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'});
    const box = [...this.getClientRects()].find(box => box.width > 0 && box.height > 0);
    if (!box) return 'hidden';
    const x = Math.floor(box.x + box.width / 2), y = Math.floor(box.y + box.height / 2);
    const hit = this.getRootNode().elementFromPoint(x, y);
    const label = hit && hit.closest('label');
    if (!hit || !(this.contains(hit) || hit.contains(this) || (label && label.control === this))) return 'covered';
    return [x, y];
}";
const FOCUS: &str = "function(value) {
    if (!this.isConnected) return 'hidden';
    if (this.matches(':disabled') || this.readOnly) return 'disabled';
    this.scrollIntoView({block: 'center', behavior: 'instant'});
    if (this.isContentEditable) {
        this.focus();
        document.getSelection().selectAllChildren(this);
        return 'type';
    }
    if (this.tagName !== 'INPUT' && this.tagName !== 'TEXTAREA') return 'not a field';
    const typed = ['text', 'search', 'email', 'url', 'tel', 'password', 'number', 'textarea'];
    if (typed.includes(this.type)) {
        this.focus();
        this.select();
        return value === '' && this.value === '' ? 'done' : 'type';
    }
    if (['checkbox', 'radio', 'file', 'submit', 'button', 'image', 'reset', 'hidden'].includes(this.type))
        return 'not a field';
    this.focus();
    const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set;
    set.call(this, value);
    if (this.value !== value) return 'not taken';
    this.dispatchEvent(new Event('input', {bubbles: true, composed: true}));
    this.dispatchEvent(new Event('change', {bubbles: true}));
    return 'done';
}";
const CHOOSE: &str = "function(wanted) {
    if (this.tagName !== 'SELECT') return 'not a select';
    if (this.matches(':disabled')) return 'disabled';
    const normal = text => text.trim().replace(/\\s+/g, ' ');
    const option = [...this.options].find(option => normal(option.label) === wanted || normal(option.text) === wanted)
        || [...this.options].find(option => option.value === wanted);
    if (!option) return 'no such option';
    if (option.disabled) return 'disabled';
    this.focus();
    option.selected = true;
    this.dispatchEvent(new Event('input', {bubbles: true, composed: true}));
    this.dispatchEvent(new Event('change', {bubbles: true}));
    return 'done';
}";
const READ: &str = "function(attribute) {
    if (attribute === null) {
        if (['INPUT', 'TEXTAREA'].includes(this.tagName)) return this.value;
        if (this.tagName === 'SELECT') return [...this.selectedOptions].map(option => option.label).join(', ');
        return this.checkVisibility() ? this.innerText : this.textContent;
    }
    if (['href', 'src', 'action'].includes(attribute) && this.hasAttribute(attribute))
        return new URL(this.getAttribute(attribute), document.baseURI).href;
    return this.getAttribute(attribute);
}";
const TABLE: &str = "function() {
    const table = this.tagName === 'TABLE' ? this : this.querySelector('table');
    const rows = table ? [...table.rows].map(row => [...row.cells])
        : [...this.querySelectorAll('[role=row]')].map(row => [...row.querySelectorAll(
            '[role=cell], [role=gridcell], [role=columnheader], [role=rowheader]')]);
    const head = rows.findIndex(row => row.length > 0);
    if (head < 0) return null;
    const body = rows.slice(head + 1).filter(row => row.length === rows[head].length);
    return {heads: rows[head].map(cell => cell.innerText), rows: body, cells: body.flat()};
}";

impl<'a> Page<'a> {
    /// The page to work on now.
    pub(crate) async fn current(browser: &'a Browser) -> Result<Self, CdpError> {
        let state = browser.page().await?;
        let mut page = Self { browser, target: state.target, session: state.session, context: 0 };
        // Made once per document, and found again by its name.
        let world = json!({"frameId": page.target, "worldName": GROUP});
        let world = page.call("Page.createIsolatedWorld", world).await?;
        page.context = world["executionContextId"].as_i64().ok_or(CdpError::Strange("a world without a number"))?;
        Ok(page)
    }

    pub(crate) async fn call(&self, method: &str, params: Value) -> Result<Value, CdpError> {
        self.browser.cdp.call(&self.session, method, params).await
    }

    /// Calls a function in the world for looking; `this` is the element where there is one.
    async fn function(
        &self,
        this: Option<&str>,
        function: &str,
        args: Value,
        by_value: bool,
    ) -> Result<Value, CdpError> {
        let mut params = json!({"functionDeclaration": function, "arguments": args, "returnByValue": by_value,
            "objectGroup": GROUP});
        match this {
            Some(id) => params["objectId"] = id.into(),
            None => params["executionContextId"] = self.context.into(),
        }
        let mut answer = self.call("Runtime.callFunctionOn", params).await?;
        if let Some(details) = answer.get("exceptionDetails") {
            let words = details["exception"]["description"].as_str().unwrap_or("an exception");
            return Err(CdpError::Refused(words.lines().next().unwrap_or_default().to_owned()));
        }
        Ok(answer["result"].take())
    }

    async fn value(&self, this: &str, function: &str, args: Value) -> Result<Value, CdpError> {
        let mut result = self.function(Some(this), function, args, true).await?;
        Ok(result["value"].take())
    }

    fn scope(scope: Option<&Element>) -> Value {
        scope.map_or_else(|| json!({"value": null}), |element| json!({"objectId": element.0}))
    }

    async fn look(&self, function: &str, args: Value, kind: &str) -> Result<Found, CdpError> {
        let list = self.function(None, function, args, false).await?;
        let list = list["objectId"].as_str().ok_or(CdpError::Strange("a list without a handle"))?.to_owned();
        let facts = self.value(&list, FACTS, json!([{"value": kind}])).await?;
        let mut facts: Vec<Facts> =
            serde_json::from_value(facts).map_err(|_| CdpError::Strange("elements without facts"))?;
        facts.truncate(MAX_ELEMENTS);
        Ok(Found { list, facts })
    }

    pub(crate) async fn by_css(&self, scope: Option<&Element>, selector: &str) -> Result<Found, CdpError> {
        self.look(BY_CSS, json!([Self::scope(scope), {"value": selector}]), "").await
    }

    pub(crate) async fn by_xpath(&self, scope: Option<&Element>, path: &str) -> Result<Found, CdpError> {
        self.look(BY_XPATH, json!([Self::scope(scope), {"value": path}]), "").await
    }

    /// Fields of forms, with what names them.
    pub(crate) async fn labelled(&self, scope: Option<&Element>) -> Result<Found, CdpError> {
        self.look(LABELLED, json!([Self::scope(scope)]), "label").await
    }

    /// What has text of its own, with it.
    pub(crate) async fn with_text(&self, scope: Option<&Element>) -> Result<Found, CdpError> {
        self.look(WITH_TEXT, json!([Self::scope(scope)]), "text").await
    }

    /// One of those that were found.
    pub(crate) async fn nth(&self, found: &Found, at: usize) -> Result<Element, CdpError> {
        let item = self.function(Some(&found.list), "function(at) { return this[at]; }", json!([{"value": at}]), false);
        let id = item.await?["objectId"].as_str().map(str::to_owned);
        id.map(Element).ok_or(CdpError::Strange("an element without a handle"))
    }

    /// Of these, what has none of the others inside.
    pub(crate) async fn innermost(&self, found: &Found, at: &[usize]) -> Result<Vec<usize>, CdpError> {
        const INNERMOST: &str = "function(at) {
            const all = at.map(at => this[at]);
            return at.filter((_, own) => !all.some((other, at) => at !== own && all[own].contains(other)));
        }";
        let value = self.value(&found.list, INNERMOST, json!([{"value": at}])).await?;
        serde_json::from_value(value).map_err(|_| CdpError::Strange("a list without numbers"))
    }

    /// What has an ARIA role, as the browser computes it, with its accessible name. What is hidden has none.
    pub(crate) async fn by_role(&self, scope: Option<&Element>, role: &str) -> Result<Vec<(i64, String)>, CdpError> {
        let root = match scope {
            Some(element) => element.0.clone(),
            None => {
                let root = self.function(None, "function() { return document; }", json!([]), false).await?;
                root["objectId"].as_str().ok_or(CdpError::Strange("a document without a handle"))?.to_owned()
            }
        };
        let tree = self.call("Accessibility.queryAXTree", json!({"objectId": root, "role": role})).await?;
        let nodes = tree["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let shown = nodes.iter().filter(|node| node["ignored"] != true).filter_map(|node| {
            let name = node["name"]["value"].as_str().unwrap_or_default();
            Some((node["backendDOMNodeId"].as_i64()?, name.to_owned()))
        });
        Ok(shown.take(MAX_ELEMENTS).collect())
    }

    pub(crate) async fn by_node(&self, node: i64) -> Result<Element, CdpError> {
        let params = json!({"backendNodeId": node, "executionContextId": self.context, "objectGroup": GROUP});
        let answer = self.call("DOM.resolveNode", params).await?;
        let id = answer["object"]["objectId"].as_str().map(str::to_owned);
        id.map(Element).ok_or(CdpError::Strange("a node without a handle"))
    }

    /// Lets go of all elements.
    pub(crate) async fn forget(&self) {
        let _ = self.call("Runtime.releaseObjectGroup", json!({"objectGroup": GROUP})).await;
    }

    pub(crate) async fn ready(&self, element: &Element) -> Result<Ready, CdpError> {
        let value = self.value(&element.0, READY, json!([])).await?;
        Ok(match (value.as_str(), value[0].as_i64(), value[1].as_i64()) {
            (_, Some(x), Some(y)) => Ready::At(x, y),
            (Some("disabled"), ..) => Ready::Disabled,
            (Some("covered"), ..) => Ready::Covered,
            _ => Ready::Hidden,
        })
    }

    pub(crate) async fn click_at(&self, x: i64, y: i64) -> Result<(), CdpError> {
        for (kind, buttons) in [("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 0)] {
            let button = if kind == "mouseMoved" { "none" } else { "left" };
            let mouse = json!({"type": kind, "x": x, "y": y, "button": button, "buttons": buttons, "clickCount": 1});
            self.call("Input.dispatchMouseEvent", mouse).await?;
        }
        Ok(())
    }

    /// Puts the cursor into a field and selects what it holds; or sets the value of one that is not typed into. What
    /// is left to do: `type`, nothing (`done`), or a word that says why not.
    pub(crate) async fn begin_fill(&self, element: &Element, value: &str) -> Result<String, CdpError> {
        let answer = self.value(&element.0, FOCUS, json!([{"value": value}])).await?;
        Ok(answer.as_str().unwrap_or("hidden").to_owned())
    }

    pub(crate) async fn insert(&self, text: &str) -> Result<(), CdpError> {
        if text.is_empty() {
            return self.press(Key::Delete).await;
        }
        self.call("Input.insertText", json!({"text": text})).await.map(|_| ())
    }

    pub(crate) async fn choose(&self, element: &Element, option: &str) -> Result<String, CdpError> {
        let answer = self.value(&element.0, CHOOSE, json!([{"value": option}])).await?;
        Ok(answer.as_str().unwrap_or("not a select").to_owned())
    }

    pub(crate) async fn press(&self, key: Key) -> Result<(), CdpError> {
        let (name, code, number, text) = keystroke(key);
        let down = if text.is_empty() { "rawKeyDown" } else { "keyDown" };
        for kind in [down, "keyUp"] {
            let mut stroke = json!({"type": kind, "key": name, "code": code, "windowsVirtualKeyCode": number});
            if kind == "keyDown" {
                stroke["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", stroke).await?;
        }
        Ok(())
    }

    /// An element's text, or one of its attributes; none where it has no such attribute.
    pub(crate) async fn read(&self, element: &Element, attribute: Option<&str>) -> Result<Option<String>, CdpError> {
        let value = self.value(&element.0, READ, json!([{"value": attribute}])).await?;
        Ok(value.as_str().map(normal))
    }

    /// The headings and cells of a table; none where it is no table.
    pub(crate) async fn table(&self, element: &Element) -> Result<Option<Table>, CdpError> {
        let table = self.function(Some(&element.0), TABLE, json!([]), false).await?;
        let Some(id) = table["objectId"].as_str() else { return Ok(None) };
        let heads = self.value(id, "function() { return this.heads; }", json!([])).await?;
        let heads: Vec<String> =
            serde_json::from_value(heads).map_err(|_| CdpError::Strange("a table without heads"))?;
        let rows = self.value(id, "function() { return this.rows.length; }", json!([])).await?;
        let cells = self.function(Some(id), "function() { return this.cells; }", json!([]), false).await?;
        let cells = cells["objectId"].as_str().ok_or(CdpError::Strange("a table without cells"))?.to_owned();
        let heads: Vec<String> = heads.iter().map(|head| normal(head)).collect();
        let rows = usize::try_from(rows.as_u64().unwrap_or_default()).unwrap_or_default().min(MAX_ELEMENTS);
        Ok(Some(Table { heads, rows, cells: Found { list: cells, facts: Vec::new() } }))
    }

    /// Has the browser save what is at a URL, as if a person had followed a link that says so.
    pub(crate) async fn save(&self, url: &str) -> Result<(), CdpError> {
        const SAVE: &str = "function(url) {
            const link = Object.assign(document.createElement('a'), {href: url, download: '', hidden: true});
            document.documentElement.append(link);
            link.click();
            link.remove();
        }";
        // A gesture: without one, only the first of several is let through.
        let params = json!({"functionDeclaration": SAVE, "arguments": [{"value": url}], "userGesture": true,
            "executionContextId": self.context});
        self.call("Runtime.callFunctionOn", params).await.map(|_| ())
    }

    /// The text of all of the page.
    pub(crate) async fn text(&self) -> Result<String, CdpError> {
        const TEXT: &str =
            "function() { return (document.body || document.documentElement).innerText.slice(0, 1 << 20); }";
        let value = self.function(None, TEXT, json!([]), true).await?;
        Ok(value["value"].as_str().map(normal).unwrap_or_default())
    }

    /// A picture, as PNG in base64.
    pub(crate) async fn screenshot(&self, full_page: bool) -> Result<String, CdpError> {
        let params = json!({"format": "png", "captureBeyondViewport": full_page, "optimizeForSpeed": true});
        let mut answer = self.call("Page.captureScreenshot", params).await?;
        match answer["data"].take() {
            Value::String(data) => Ok(data),
            _ => Err(CdpError::Strange("a picture without data")),
        }
    }

    /// Whether its scripts let anything in between: waits for what they have put off by nothing.
    pub(crate) async fn breathe(&self) -> Result<(), CdpError> {
        let params = json!({"expression": "new Promise(done => setTimeout(done, 0))", "awaitPromise": true,
            "returnByValue": true, "contextId": self.context});
        self.call("Runtime.evaluate", params).await.map(|_| ())
    }
}

/// A table's headings, and its cells row by row.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) heads: Vec<String>,
    pub(crate) rows: usize,
    pub(crate) cells: Found,
}

/// Name, code, number and text of a key.
const fn keystroke(key: Key) -> (&'static str, &'static str, u32, &'static str) {
    match key {
        Key::Enter => ("Enter", "Enter", 13, "\r"),
        Key::Tab => ("Tab", "Tab", 9, ""),
        Key::Escape => ("Escape", "Escape", 27, ""),
        Key::Space => (" ", "Space", 32, " "),
        Key::Backspace => ("Backspace", "Backspace", 8, ""),
        Key::Delete => ("Delete", "Delete", 46, ""),
        Key::ArrowUp => ("ArrowUp", "ArrowUp", 38, ""),
        Key::ArrowDown => ("ArrowDown", "ArrowDown", 40, ""),
        Key::ArrowLeft => ("ArrowLeft", "ArrowLeft", 37, ""),
        Key::ArrowRight => ("ArrowRight", "ArrowRight", 39, ""),
        Key::PageUp => ("PageUp", "PageUp", 33, ""),
        Key::PageDown => ("PageDown", "PageDown", 34, ""),
        Key::Home => ("Home", "Home", 36, ""),
        Key::End => ("End", "End", 35, ""),
    }
}
