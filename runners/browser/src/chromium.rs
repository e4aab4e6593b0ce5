//! The system's Chromium: where it is, and how it is started.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::program::Viewport;

/// What Chromium and its relatives are called in `PATH`, in the order of preference.
const NAMES: [&str; 5] = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome"];
/// Where macOS has them.
const APPLICATIONS: [&str; 2] = [
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
];

/// Finds the browser: the one that is named, here or in `ERRAND_CHROMIUM`, else the first in `PATH` or among the
/// applications.
///
/// # Errors
/// Where there is none; one line that says what to do.
pub fn find(named: Option<&Path>) -> Result<PathBuf, String> {
    let of_environment = || std::env::var_os("ERRAND_CHROMIUM").filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = named.map(Path::to_owned).or_else(of_environment) {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("there is no Chromium at {} (ERRAND_CHROMIUM, --chromium)", path.display()))
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = NAMES.iter().flat_map(|name| std::env::split_paths(&path).map(move |folder| folder.join(name)));
    let found = in_path.chain(APPLICATIONS.map(PathBuf::from)).find(|path| path.is_file());
    found.ok_or_else(|| {
        "there is no Chromium on this machine: install it (Debian: apt-get install chromium; macOS: brew install \
         --cask chromium), or name it in ERRAND_CHROMIUM"
            .to_owned()
    })
}

/// Of the runner's environment, what a browser gets: where programs, fonts, certificates and the display are.
const INHERITED: [&str; 11] = [
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "TZ",
    "FONTCONFIG_PATH",
    "FONTCONFIG_FILE",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
];

/// How a browser is started.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) headless: bool,
    pub(crate) sandbox: bool,
    /// Whether programs outside may attach to it.
    pub(crate) attachable: bool,
    pub(crate) viewport: Viewport,
    pub(crate) locale: Option<String>,
    pub(crate) time_zone: Option<String>,
    pub(crate) user_agent: Option<String>,
}

/// Fixed, because a session is to be the same wherever it runs: nothing is fetched, shown or asked that no page wants.
const FLAGS: [&str; 29] = [
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-pings",
    "--no-service-autorun",
    "--deny-permission-prompts",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-breakpad",
    "--disable-client-side-phishing-detection",
    "--disable-component-update",
    "--disable-component-extensions-with-background-pages",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-field-trial-config",
    "--disable-hang-monitor",
    "--disable-prompt-on-repost",
    "--disable-search-engine-choice-screen",
    "--disable-sync",
    "--mute-audio",
    "--password-store=basic",
    "--use-mock-keychain",
    // UDP would pass the way out by.
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--disable-features=Translate,MediaRouter,OptimizationHints,AutofillServerCommunication,HttpsUpgrades,\
     HttpsFirstBalancedModeAutoEnable,DialMediaRouteProvider,GlobalMediaControls,InterestFeedContentSuggestions,\
     CertificateTransparencyComponentUpdater,WebUIOmniboxPopup,WebUIOmniboxAimPopup,SpareRendererForSitePerProcess",
];

impl Launch {
    /// The program with its arguments. A shell puts the runner's two pipes where Chromium expects them, and becomes it.
    pub(crate) fn command(&self, profile: &Path, egress: u16) -> Vec<OsString> {
        const PIPES: &str = r#"exec "$@" 3<&0 4>&1 0</dev/null 1>/dev/null"#;
        let mut command: Vec<OsString> = ["/bin/sh", "-c", PIPES, "sh"].map(OsString::from).to_vec();
        command.push(self.program.clone().into());
        command.extend(FLAGS.map(OsString::from));
        let mut profile_flag = OsString::from("--user-data-dir=");
        profile_flag.push(profile);
        command.push(profile_flag);
        let Viewport { width, height } = self.viewport;
        let mut more = vec![
            format!("--window-size={width},{height}"),
            format!("--proxy-server=socks5://127.0.0.1:{egress}"),
            // Loopback addresses pass the way out, too; and no name is looked up by the browser.
            "--proxy-bypass-list=<-loopback>".to_owned(),
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1".to_owned(),
        ];
        if self.headless {
            more.extend(["--headless=new".to_owned(), "--hide-scrollbars".to_owned()]);
        }
        if !self.sandbox {
            more.push("--no-sandbox".to_owned());
        }
        if self.attachable {
            more.push("--remote-debugging-port=0".to_owned());
        }
        if let Some(locale) = &self.locale {
            more.extend([format!("--lang={locale}"), format!("--accept-lang={locale}")]);
        }
        if let Some(agent) = &self.user_agent {
            more.push(format!("--user-agent={agent}"));
        }
        command.extend(more.into_iter().map(OsString::from));
        command.push("about:blank".into());
        command
    }

    /// All its variables: the runner's own may hold secrets, and what does not come from the profile is the session's.
    pub(crate) fn environment(&self, folder: &Path) -> Vec<(&'static str, OsString)> {
        let inherited = INHERITED.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let mut variables: Vec<(&'static str, OsString)> = inherited.collect();
        for name in ["XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
            variables.push((name, folder.join("home").into()));
        }
        if let Some(zone) = &self.time_zone {
            variables.push(("TZ", zone.into()));
        }
        if let Some(locale) = &self.locale {
            variables.push(("LANGUAGE", locale.replace('-', "_").into()));
        }
        variables
    }
}

/// What a new profile begins with: files are saved instead of shown.
pub(crate) const PREFERENCES: &str = r#"{"plugins":{"always_open_pdf_externally":true},"download":{"prompt_for_download":false},"credentials_enable_service":false,"profile":{"password_manager_enabled":false}}"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sandbox_and_the_port_are_as_they_were_asked_for() {
        let mut launch = Launch {
            program: "chromium".into(),
            headless: true,
            sandbox: true,
            attachable: false,
            viewport: Viewport { width: 800, height: 600 },
            locale: None,
            time_zone: None,
            user_agent: None,
        };
        let has = |launch: &Launch, flag: &str| launch.command(Path::new("/p"), 1).iter().any(|part| part == flag);
        assert!(!has(&launch, "--no-sandbox") && !has(&launch, "--remote-debugging-port=0"));
        (launch.sandbox, launch.attachable) = (false, true);
        assert!(has(&launch, "--no-sandbox") && has(&launch, "--remote-debugging-port=0"));
    }

    #[test]
    fn a_browser_that_is_named_and_missing_is_said_in_one_line() {
        let error = find(Some(Path::new("/no/such/browser"))).unwrap_err();
        assert!(error.contains("/no/such/browser") && !error.contains('\n'), "{error}");
        let here = std::env::current_exe().unwrap();
        assert_eq!(find(Some(&here)), Ok(here));
    }
}
