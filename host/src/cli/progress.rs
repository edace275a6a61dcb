//! How far a long command is, for whoever watches: drawn on a terminal, and nowhere else.

pub(super) use indicatif::ProgressBar;
use indicatif::ProgressStyle;

/// A bar up to so many of these.
pub(super) fn bar(total: u64, what: &str) -> ProgressBar {
    let template = format!("{{bar:40}} {{human_pos}}/{{human_len}} {what}, {{per_sec}}, {{eta}} left");
    let style = ProgressStyle::with_template(&template).expect("the template is one that indicatif knows");
    ProgressBar::new(total).with_style(style)
}

/// Something that turns while nobody knows how much is left.
pub(super) fn spinner(what: &'static str) -> ProgressBar {
    ProgressBar::new_spinner().with_message(what)
}
