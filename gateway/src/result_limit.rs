//! Tool results that are larger than the hub wants: their text is cut, and says so. Images, audio, binary resources and
//! structured content are never cut, because half of one is none; a result of such things stays as large as it is.

use mcp_hub_mcp::envelope::quoted;
use mcp_hub_mcp::object::RawObject;
use serde_json::value::RawValue;

/// A raw result with as much of its text as fits into `limit` bytes of JSON; the notes about what was cut come on top.
pub(crate) fn cut(result: &str, limit: usize) -> String {
    let Some(mut object) = RawObject::parse(result).filter(|_| result.len() > limit) else { return result.to_owned() };
    let content = object.get("content").and_then(|raw| serde_json::from_str::<Vec<&RawValue>>(raw).ok());
    let mut blocks: Vec<Block> = content.into_iter().flatten().map(|raw| Block::of(raw.get())).collect();
    let text: usize = blocks.iter().filter_map(|block| block.text.as_ref()).map(|text| quoted(text).len()).sum();
    let mut left = limit.saturating_sub(result.len().saturating_sub(text));
    for block in &mut blocks {
        block.shorten(&mut left);
    }
    let shown: Vec<String> = blocks.into_iter().map(|block| block.raw).collect();
    object.set("content", format!("[{}]", shown.join(",")));
    object.to_string()
}

/// One block of content.
struct Block {
    raw: String,
    text: Option<String>,
    is_resource: bool,
}

impl Block {
    fn of(raw: &str) -> Self {
        let object = RawObject::parse(raw).unwrap_or_default();
        let text_of = |object: &RawObject| object.get("text").and_then(|raw| serde_json::from_str(raw).ok());
        let resource = object.get("resource").and_then(RawObject::parse);
        let is_resource = object.get("type") == Some(r#""resource""#);
        let text = if is_resource { resource.as_ref().and_then(text_of) } else { text_of(&object) };
        Self { raw: raw.to_owned(), text, is_resource }
    }

    /// Takes what fits from `left`, in bytes of JSON.
    fn shorten(&mut self, left: &mut usize) {
        let Some(text) = &self.text else { return };
        let whole = quoted(text).len();
        if whole <= *left {
            *left -= whole;
            return;
        }
        let mut kept = 0;
        for character in text.chars() {
            let size = match character {
                '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
                '\0'..='\u{1f}' => 6,
                other => other.len_utf8(),
            };
            if size > *left {
                break;
            }
            *left -= size;
            kept += character.len_utf8();
        }
        *left = 0;
        let note = format!(
            "{}\n[cut: {kept} of {} bytes of this text; spec.limits.resultBytes of the hub]",
            &text[..kept],
            text.len()
        );
        let mut object = RawObject::parse(&self.raw).unwrap_or_default();
        if self.is_resource {
            let mut resource = object.get("resource").and_then(RawObject::parse).unwrap_or_default();
            resource.set("text", quoted(&note));
            object.set("resource", resource.to_string());
        } else {
            object.set("text", quoted(&note));
        }
        self.raw = object.to_string();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn text_is_cut_visibly_and_images_are_not() {
        let image = "i".repeat(3000);
        let result = json!({"content": [
            {"type": "text", "text": "a".repeat(100)},
            {"type": "image", "data": image, "mimeType": "image/png"},
            {"type": "resource", "resource": {"uri": "a:b", "text": "ö".repeat(1000)}},
            {"type": "resource", "resource": {"uri": "a:c", "blob": image}},
            {"type": "text", "text": "z".repeat(50)},
        ], "structuredContent": {"n": 1.0}, "isError": false});
        let cut: Value = serde_json::from_str(&cut(&result.to_string(), 7000)).unwrap();
        for whole in ["/content/0", "/content/1", "/content/3", "/structuredContent", "/isError"] {
            assert_eq!(cut.pointer(whole), result.pointer(whole), "{whole}");
        }
        let resource = cut["content"][2]["resource"]["text"].as_str().unwrap();
        assert!(resource.starts_with("öö") && resource.contains("of 2000 bytes of this text; spec.limits.resultBytes"));
        assert_eq!(cut["content"][2]["resource"]["uri"], "a:b");
        assert!(cut["content"][4]["text"].as_str().unwrap().starts_with("\n[cut: 0 of 50 bytes"));
    }

    #[test]
    fn what_fits_or_cannot_be_cut_stays_as_it_was_written() {
        let small = r#"{"content":[{"type":"text","text":"\u0061"}]}"#;
        assert_eq!(cut(small, small.len()), small);
        let data = json!({"content": [], "structuredContent": {"x": "y".repeat(100)}}).to_string();
        assert_eq!(cut(&data, 10), data);
        assert_eq!(cut("[]", 0), "[]");
    }

    proptest! {
        #[test]
        fn a_cut_result_is_no_larger_than_the_limit_and_its_notes(text in "\\PC{0,200}[\\x00-\\x7f]{0,200}", limit in 40..500_usize) {
            let result = json!({"content": [{"type": "text", "text": text}]}).to_string();
            let cut = cut(&result, limit);
            prop_assert!(serde_json::from_str::<Value>(&cut).is_ok());
            prop_assert!(cut.len() <= limit.max(40) + 120, "{} {limit}", cut.len());
        }
    }
}
