//! `errand interact`, and asking a person on the terminal.

use std::io::{IsTerminal, Write};

use errand_client::Client;
use errand_core::ErrorCode;
use errand_proto::{json, v1};
use serde_json::{Map, Value};

use crate::args::InteractArgs;
use crate::commands::show;
use crate::failure::Usage;
use crate::output::{Output, cell};

pub(crate) async fn run(args: InteractArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    let answer = if args.fields.is_empty() {
        let run = client.get_run(args.run).await?;
        let Some(interaction) = run.interaction else {
            let message = format!("{} asks nothing now", args.run);
            return Err(ErrorCode::INTERACTION_NOT_PENDING.with(message).into());
        };
        if !can_ask() {
            let how = show::how_to_answer(&args.run.to_string(), &json::interaction(Some(&interaction)));
            return Err(Usage(format!("the answer is missing: {how}")).into());
        }
        tokio::task::spawn_blocking(move || ask(&interaction)).await??
    } else {
        args.fields.into_iter().map(|(name, value)| (name, Value::String(value))).collect::<Map<_, _>>().into()
    };
    let run = client.interact(args.run, &answer).await?;
    out.item(&json::run(&run), |run| format!("{} is {}", cell(run, "id"), cell(run, "status")))
}

/// Whether a person can be asked: there is a terminal to ask on and to read from.
pub(crate) fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks for each field on the terminal. Blocks.
pub(crate) fn ask(interaction: &v1::Interaction) -> anyhow::Result<Value> {
    let mut answer = Map::new();
    eprintln!("{}", printable(&interaction.message));
    for field in &interaction.fields {
        let label = printable(if field.label.is_empty() { &field.name } else { &field.label });
        let value = match field.r#type.as_str() {
            "select" => select(&label, &field.options)?,
            "password" => {
                eprint!("  {label}: ");
                let secret = console::Term::stderr().read_secure_line()?;
                eprintln!();
                secret
            }
            _ => line(&label)?,
        };
        answer.insert(field.name.clone(), Value::String(value));
    }
    Ok(Value::Object(answer))
}

fn line(label: &str) -> anyhow::Result<String> {
    eprint!("  {label}: ");
    std::io::stderr().flush()?;
    let mut text = String::new();
    anyhow::ensure!(std::io::stdin().read_line(&mut text)? > 0, "the input has ended");
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn select(label: &str, options: &[String]) -> anyhow::Result<String> {
    for (at, option) in options.iter().enumerate() {
        eprintln!("  {}) {}", at + 1, printable(option));
    }
    loop {
        let text = line(label)?;
        if let Some(option) = chosen(&text, options) {
            return Ok(option.clone());
        }
        eprintln!("  1..{}, or the text itself", options.len());
    }
}

/// By number or by its own text, which counts first.
fn chosen<'a>(text: &str, options: &'a [String]) -> Option<&'a String> {
    let by_number = || text.trim().parse::<usize>().ok().and_then(|number| options.get(number.checked_sub(1)?));
    options.iter().find(|option| *option == text).or_else(by_number)
}

/// What an agent says may not move the cursor or clear the screen.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_chosen_by_text_or_number() {
        let options = ["2".to_owned(), "savings".to_owned()];
        let cases = [("savings", Some(1)), ("2", Some(0)), ("1", Some(0)), (" 2 ", Some(1)), ("3", None), ("0", None)];
        for (text, expected) in cases {
            assert_eq!(chosen(text, &options), expected.map(|at: usize| &options[at]), "{text}");
        }
    }

    #[test]
    fn an_agent_cannot_draw_on_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc\r"), "a [2Jb\nc ");
    }
}
