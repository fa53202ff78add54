//! The feature gates of KEP-4006, with the defaults and the words of Kubernetes 1.36.

use std::{collections::BTreeMap, error, fmt, str::FromStr};

/// One feature gate. Names, stages and defaults are those of `pkg/features/kube_features.go` in Kubernetes 1.36.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gate {
    /// The API server translates exec and attach over WebSocket into SPDY. Beta since 1.30.
    TranslateStreamCloseWebsocketRequests,
    /// The API server ends the port-forward tunnel. Beta since 1.31.
    PortForwardWebsockets,
    /// The API server asks for `create` before a GET opens a stream into a pod. Beta since 1.35.
    AuthorizePodWebsocketUpgradeCreatePermission,
    /// The kubelet translates, and ends the tunnel, itself; the API server leaves it to kubelets that declare so. Beta
    /// since 1.36.
    ExtendWebSocketsToKubelet,
    /// Nodes declare their features in `status.declaredFeatures`. Beta since 1.36.
    NodeDeclaredFeatures,
}

/// How settled a gate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Maturity {
    /// Off unless asked for; `AllAlpha` sets it.
    Alpha,
    /// `AllBeta` sets it.
    Beta,
    /// Generally available; neither sets it, and it may be locked.
    Ga,
}

impl Gate {
    /// All gates, in the order of their declaration.
    pub const ALL: [Self; 5] = [
        Self::TranslateStreamCloseWebsocketRequests,
        Self::PortForwardWebsockets,
        Self::AuthorizePodWebsocketUpgradeCreatePermission,
        Self::ExtendWebSocketsToKubelet,
        Self::NodeDeclaredFeatures,
    ];

    /// The name in `--feature-gates`; that of `ExtendWebSocketsToKubelet` is also what a node declares.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TranslateStreamCloseWebsocketRequests => "TranslateStreamCloseWebsocketRequests",
            Self::PortForwardWebsockets => "PortForwardWebsockets",
            Self::AuthorizePodWebsocketUpgradeCreatePermission => "AuthorizePodWebsocketUpgradeCreatePermission",
            Self::ExtendWebSocketsToKubelet => "ExtendWebSocketsToKubelet",
            Self::NodeDeclaredFeatures => "NodeDeclaredFeatures",
        }
    }

    /// How settled it is in 1.36.
    #[must_use]
    pub fn maturity(self) -> Maturity {
        SPECS[self as usize].maturity
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What upstream's `FeatureSpec` says of one gate.
#[derive(Clone, Copy, Debug)]
struct Spec {
    maturity: Maturity,
    default: bool,
    /// Upstream's `LockToDefault`, which a gate gets with GA.
    locked: bool,
}

/// In the order of [`Gate::ALL`].
type Specs = [Spec; Gate::ALL.len()];

/// In 1.36 all five are beta, on, and may be turned off.
const SPECS: Specs = [Spec { maturity: Maturity::Beta, default: true, locked: false }; Gate::ALL.len()];

/// Upstream's `defaultKubernetesFeatureGateDependencies`, as far as these gates are in it.
const DEPENDENCIES: [(Gate, Gate); 1] = [(Gate::ExtendWebSocketsToKubelet, Gate::NodeDeclaredFeatures)];

/// Which gates are on. By default what is on in Kubernetes 1.36: all.
///
/// Read from kube's `--feature-gates` syntax, and written in it; what is read has whole dependencies.
///
/// ```
/// use tower_kube_streaming::{FeatureGates, Gate};
///
/// let gates: FeatureGates = "AllBeta=false,PortForwardWebsockets=true".parse()?;
/// assert!(gates.enabled(Gate::PortForwardWebsockets));
/// assert!(!gates.enabled(Gate::TranslateStreamCloseWebsocketRequests));
///
/// // A kubelet that declares nothing cannot be found by an API server.
/// let broken = "NodeDeclaredFeatures=false".parse::<FeatureGates>();
/// assert!(broken.is_err());
/// # Ok::<_, tower_kube_streaming::GatesError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FeatureGates([bool; Gate::ALL.len()]);

impl FeatureGates {
    /// The defaults, but for those gates. Of a gate that is named twice the last value counts.
    ///
    /// # Errors
    ///
    /// A locked gate is set to what it is not locked to, or a gate is on and one that it depends on is off.
    pub fn with(settings: impl IntoIterator<Item = (Gate, bool)>) -> Result<Self, GatesError> {
        resolve(&settings.into_iter().map(|(gate, on)| (Key::One(gate), on)).collect(), &SPECS)
    }

    /// Whether that gate is on.
    #[must_use]
    pub fn enabled(self, gate: Gate) -> bool {
        self.0[gate as usize]
    }
}

impl Default for FeatureGates {
    fn default() -> Self {
        Self(SPECS.map(|spec| spec.default))
    }
}

impl FromStr for FeatureGates {
    type Err = GatesError;

    /// Reads `A=true,B=false`, as `component-base/featuregate` does: spaces around names and values and empty elements
    /// are passed over, the last of several values counts, and `AllAlpha` and `AllBeta` set what is not named itself,
    /// wherever they stand.
    fn from_str(flag: &str) -> Result<Self, GatesError> {
        resolve(&settings(flag)?, &SPECS)
    }
}

/// All gates with their values, in the syntax of `--feature-gates` and sorted by name.
impl fmt::Display for FeatureGates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gates = Gate::ALL;
        gates.sort_unstable_by_key(|gate| gate.name());
        for (at, gate) in gates.into_iter().enumerate() {
            let separator = if at == 0 { "" } else { "," };
            write!(f, "{separator}{gate}={}", self.enabled(gate))?;
        }
        Ok(())
    }
}

/// Why feature gates cannot be what they were set to, in the words of kube's own flag. A fault of configuration: stop
/// at start-up and print it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatesError(String);

impl fmt::Display for GatesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl error::Error for GatesError {}

/// What a setting is about. In this order they are applied: what is named itself comes last, and wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    All(Maturity),
    One(Gate),
}

fn key(name: &str) -> Option<Key> {
    match name {
        "AllAlpha" => Some(Key::All(Maturity::Alpha)),
        "AllBeta" => Some(Key::All(Maturity::Beta)),
        _ => Gate::ALL.into_iter().find(|gate| gate.name() == name).map(Key::One),
    }
}

/// Upstream's `featureGate.Set`: a bad value is told before an unknown name, wherever they stand.
fn settings(flag: &str) -> Result<BTreeMap<Key, bool>, GatesError> {
    let mut pairs = Vec::new();
    for element in flag.split(',').filter(|element| !element.is_empty()) {
        let Some((name, value)) = element.split_once('=') else {
            return Err(GatesError(format!("missing bool value for {}", element.trim())));
        };
        let (name, value) = (name.trim(), value.trim());
        let on = parse_bool(value).ok_or_else(|| {
            GatesError(format!(
                "invalid value of {name}={value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax"
            ))
        })?;
        pairs.push((name, on));
    }
    pairs
        .into_iter()
        .map(|(name, on)| match key(name) {
            Some(key) => Ok((key, on)),
            None => Err(GatesError(format!("unrecognized feature gate: {name}"))),
        })
        .collect()
}

/// Go's `strconv.ParseBool`.
fn parse_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Upstream's `unsafeSetFromMap`: locks first, dependencies only where these hold.
fn resolve(settings: &BTreeMap<Key, bool>, specs: &Specs) -> Result<FeatureGates, GatesError> {
    let mut gates = FeatureGates(specs.map(|spec| spec.default));
    let mut faults = Vec::new();
    for (&key, &on) in settings {
        match key {
            Key::All(maturity) => {
                let of_it = gates.0.iter_mut().zip(specs).filter(|(_, spec)| spec.maturity == maturity);
                of_it.for_each(|(value, _)| *value = on);
            }
            Key::One(gate) => {
                let Spec { default, locked, .. } = specs[gate as usize];
                if locked && on != default {
                    faults.push(format!("cannot set feature gate {gate} to {on}, feature is locked to {default}"));
                }
                gates.0[gate as usize] = on;
            }
        }
    }
    if faults.is_empty() {
        let broken = DEPENDENCIES.into_iter().filter(|&(gate, on)| gates.enabled(gate) && !gates.enabled(on));
        faults.extend(
            broken.map(|(gate, on)| format!("{gate} is enabled, but depends on features that are disabled: [{on}]")),
        );
    }
    match faults.as_slice() {
        [] => Ok(gates),
        [fault] => Err(GatesError(fault.clone())),
        // As upstream's `Aggregate` prints several.
        several => Err(GatesError(format!("[{}]", several.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXTEND: Gate = Gate::ExtendWebSocketsToKubelet;
    const DECLARED: Gate = Gate::NodeDeclaredFeatures;

    fn parsed(flag: &str) -> Result<FeatureGates, String> {
        flag.parse().map_err(|error: GatesError| error.to_string())
    }

    fn on(gates: FeatureGates) -> Vec<Gate> {
        Gate::ALL.into_iter().filter(|&gate| gates.enabled(gate)).collect()
    }

    #[test]
    fn in_1_36_all_gates_are_beta_and_on_and_none_is_locked() {
        assert_eq!(on(FeatureGates::default()), Gate::ALL);
        assert_eq!(parsed(""), Ok(FeatureGates::default()));
        for (at, gate) in Gate::ALL.into_iter().enumerate() {
            assert_eq!(gate as usize, at, "specs are found by this number");
            assert_eq!(gate.maturity(), Maturity::Beta);
            assert!(!SPECS[at].locked);
        }
    }

    #[test]
    fn each_gate_turns_off_by_its_name() {
        for gate in Gate::ALL.into_iter().filter(|&gate| gate != DECLARED) {
            let gates = parsed(&format!("{gate}=false")).unwrap();
            assert_eq!(on(gates), Gate::ALL.into_iter().filter(|&other| other != gate).collect::<Vec<_>>());
        }
    }

    #[test]
    fn spaces_and_empty_elements_are_passed_over_and_the_last_value_counts() {
        let off = FeatureGates::with([(EXTEND, false)]).unwrap();
        for flag in [
            "ExtendWebSocketsToKubelet=false",
            ",, ExtendWebSocketsToKubelet = false ,",
            "ExtendWebSocketsToKubelet=true,ExtendWebSocketsToKubelet=F",
        ] {
            assert_eq!(parsed(flag), Ok(off), "{flag}");
        }
        assert_eq!(FeatureGates::with([(EXTEND, true), (EXTEND, false)]), Ok(off));
    }

    #[test]
    fn a_value_is_what_go_takes_for_a_bool() {
        for yes in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(parsed(&format!("PortForwardWebsockets={yes}")), Ok(FeatureGates::default()), "{yes}");
        }
        let off = FeatureGates::with([(Gate::PortForwardWebsockets, false)]).unwrap();
        for no in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(parsed(&format!("PortForwardWebsockets={no}")), Ok(off), "{no}");
        }
        for neither in ["", "yes", "tRUE", "true=false", "2"] {
            assert_eq!(
                parsed(&format!("PortForwardWebsockets={neither}")),
                Err(format!(
                    "invalid value of PortForwardWebsockets={neither}, err: strconv.ParseBool: parsing {neither:?}: invalid syntax"
                ))
            );
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_kubes_words() {
        let broken = "ExtendWebSocketsToKubelet is enabled, but depends on features that are disabled: \
                      [NodeDeclaredFeatures]";
        for (flag, why) in [
            ("Nosuch=true", "unrecognized feature gate: Nosuch"),
            ("portforwardwebsockets=true", "unrecognized feature gate: portforwardwebsockets"),
            ("=true", "unrecognized feature gate: "),
            ("PortForwardWebsockets", "missing bool value for PortForwardWebsockets"),
            (" ", "missing bool value for "),
            ("Nosuch=true,PortForwardWebsockets", "missing bool value for PortForwardWebsockets"),
            ("NodeDeclaredFeatures=false", broken),
            ("AllBeta=false,ExtendWebSocketsToKubelet=true", broken),
            ("ExtendWebSocketsToKubelet=true,AllBeta=false", broken),
        ] {
            assert_eq!(parsed(flag), Err(why.to_owned()), "{flag}");
        }
        assert_eq!(FeatureGates::with([(DECLARED, false)]).unwrap_err().to_string(), broken);
    }

    #[test]
    fn a_dependency_may_be_off_where_nothing_needs_it() {
        let gates = parsed("NodeDeclaredFeatures=false,ExtendWebSocketsToKubelet=false").unwrap();
        assert_eq!(FeatureGates::with([(DECLARED, false), (EXTEND, false)]), Ok(gates));
        assert!(!gates.enabled(DECLARED) && !gates.enabled(EXTEND));
    }

    #[test]
    fn all_alpha_and_all_beta_set_the_gates_of_their_stage_that_are_not_named() {
        assert_eq!(on(parsed("AllBeta=false").unwrap()), []);
        assert_eq!(on(parsed("AllBeta=false,PortForwardWebsockets=true").unwrap()), [Gate::PortForwardWebsockets]);
        assert_eq!(on(parsed("PortForwardWebsockets=true,AllBeta=false").unwrap()), [Gate::PortForwardWebsockets]);
        for flag in ["AllAlpha=true", "AllAlpha=false", "AllBeta=true", "AllBeta=true,AllAlpha=false"] {
            assert_eq!(parsed(flag), Ok(FeatureGates::default()), "{flag}");
        }
        let mut specs = SPECS;
        specs[EXTEND as usize] = Spec { maturity: Maturity::Alpha, default: false, locked: false };
        let set = |flag: &str| resolve(&settings(flag).unwrap(), &specs).unwrap();
        assert!(!set("AllBeta=true").enabled(EXTEND));
        assert_eq!(on(set("AllAlpha=true")), Gate::ALL);
        assert_eq!(on(set("AllAlpha=true,AllBeta=false,NodeDeclaredFeatures=true")), [EXTEND, DECLARED]);
    }

    #[test]
    fn a_gate_that_is_locked_at_ga_can_only_be_set_to_what_it_is() {
        let mut specs = SPECS;
        let translate = Gate::TranslateStreamCloseWebsocketRequests;
        for gate in [translate, Gate::PortForwardWebsockets] {
            specs[gate as usize] = Spec { maturity: Maturity::Ga, default: true, locked: true };
        }
        let set = |flag: &str| resolve(&settings(flag).unwrap(), &specs).map_err(|error| error.to_string());
        assert_eq!(set("PortForwardWebsockets=true"), Ok(FeatureGates::default()));
        assert_eq!(
            set("PortForwardWebsockets=false"),
            Err("cannot set feature gate PortForwardWebsockets to false, feature is locked to true".to_owned())
        );
        assert_eq!(
            set("PortForwardWebsockets=false,TranslateStreamCloseWebsocketRequests=0,NodeDeclaredFeatures=false"),
            Err("[cannot set feature gate TranslateStreamCloseWebsocketRequests to false, feature is locked to true, \
                 cannot set feature gate PortForwardWebsockets to false, feature is locked to true]"
                .to_owned())
        );
        assert_eq!(on(set("AllBeta=false").unwrap()), [translate, Gate::PortForwardWebsockets]);
    }

    #[test]
    fn what_is_written_is_read_again_for_every_combination() {
        let mut good = 0;
        for bits in 0..1_u32 << Gate::ALL.len() {
            let values = Gate::ALL.map(|gate| (gate, bits >> gate as usize & 1 == 1));
            let Ok(gates) = FeatureGates::with(values) else {
                assert!(values.contains(&(EXTEND, true)) && values.contains(&(DECLARED, false)), "{values:?}");
                continue;
            };
            good += 1;
            assert!(values.iter().all(|&(gate, on)| gates.enabled(gate) == on), "{values:?}");
            assert_eq!(parsed(&gates.to_string()), Ok(gates));
        }
        assert_eq!(good, 24, "of 32 combinations one in four breaks the dependency");
        assert_eq!(
            FeatureGates::default().to_string(),
            "AuthorizePodWebsocketUpgradeCreatePermission=true,ExtendWebSocketsToKubelet=true,\
             NodeDeclaredFeatures=true,PortForwardWebsockets=true,TranslateStreamCloseWebsocketRequests=true"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

        #[test]
        fn no_flag_breaks_the_reader_and_what_it_accepts_has_whole_dependencies(
            elements in prop::collection::vec(
                prop_oneof![
                    "[A-Za-z =,]{0,12}",
                    "(AllAlpha|AllBeta|ExtendWebSocketsToKubelet|NodeDeclaredFeatures)=(true|false)",
                ],
                0..6,
            ),
        ) {
            if let Ok(gates) = parsed(&elements.join(",")) {
                prop_assert!(!gates.enabled(EXTEND) || gates.enabled(DECLARED));
            }
        }

        #[test]
        fn the_order_of_different_gates_does_not_matter(
            values in prop::collection::btree_map(0..7_usize, any::<bool>(), 0..7).prop_map(|values| {
                let name = |at| match at {
                    5 => "AllAlpha",
                    6 => "AllBeta",
                    at => Gate::ALL[at].name(),
                };
                values.into_iter().map(|(at, on)| format!("{}={on}", name(at))).collect::<Vec<_>>()
            }),
            by in any::<prop::sample::Index>(),
        ) {
            let mut turned = values.clone();
            if !turned.is_empty() {
                turned.rotate_left(by.index(values.len()));
            }
            prop_assert_eq!(parsed(&values.join(",")), parsed(&turned.join(",")));
        }
    }
}
