//! The promises that Tidemill makes, each a test with its name, on real servers and through the real binary.

mod promises {
    mod books;
    mod broken;
    mod broker;
    mod bytes;
    mod dependency;
    mod exactly_once;
    mod groups;
    mod hostile;
    mod ingest;
    mod ledgers;
    mod letters;
    mod means;
    mod modes;
    mod moved;
    mod offsets;
    mod pause;
    mod policy;
    mod postgres;
    mod replay;
    mod stored;
    mod swap;
    mod takeover;
    mod weather;
}
